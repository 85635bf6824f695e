"""Distributed training with TensorFlow, done well, with MNIST as the workload.

The public names are imported when they are first used: `import mnist_dist` alone takes
no time, and TensorFlow is not imported before it is needed.
"""

import sys

__version__ = "0.1.0"

# A program of ours begins: `python -m mnist_dist.VERB`. This comes before its imports.
if sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv[-len(sys.argv)]:
    from mnist_dist.cli.module_path import leave_working_directory

    leave_working_directory()

import importlib
from typing import TYPE_CHECKING, Any

# Name -> the module that it comes from. None is the name of a program's module, which
# `import mnist_dist.train` would put in its place.
_PUBLIC = {
    "TrainingResult": "training.result",
    "train_model": "training.train_model",
    "load_dataset": "data",
    "load_trained_model": "inference.trained_model",
    "load_layer": "layer_weights.layers",
    "set_layer": "layer_weights.layers",
    "InputError": "errors",
    "OptionError": "training.option",
    "PeerError": "errors",
    "RunError": "errors",
}

if TYPE_CHECKING:
    from mnist_dist.data import load_dataset as load_dataset
    from mnist_dist.errors import InputError as InputError
    from mnist_dist.errors import PeerError as PeerError
    from mnist_dist.errors import RunError as RunError
    from mnist_dist.inference.trained_model import (
        load_trained_model as load_trained_model,
    )
    from mnist_dist.layer_weights.layers import load_layer as load_layer
    from mnist_dist.layer_weights.layers import set_layer as set_layer
    from mnist_dist.training.option import OptionError as OptionError
    from mnist_dist.training.result import TrainingResult as TrainingResult
    from mnist_dist.training.train_model import train_model as train_model

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name]}")
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
