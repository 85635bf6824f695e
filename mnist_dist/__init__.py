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
    "train_model": "training.train_model",
    "TrainingResult": "training.result",
    "evaluate_model": "evaluation.model_evaluation",
    "ModelEvaluation": "evaluation.model_evaluation",
    "predict_images": "inference.image_predictions",
    "ImagePredictions": "inference.image_predictions",
    "export_model": "artifacts.model_export",
    "ExportedModel": "artifacts.model_export",
    "load_trained_model": "inference.trained_model",
    "TrainedModel": "inference.trained_model",
    "load_dataset": "data",
    "dataset_from_arrays": "data",
    "Dataset": "data",
    "load_weights": "layer_weights.weight_sources",
    "load_layer": "layer_weights.layers",
    "set_layer": "layer_weights.layers",
    "save_layers": "layer_weights.layer_files",
    "transplant_layers": "layer_weights.run_layers",
    "diff_layers": "layer_weights.differences",
    "compare_runs": "reporting.comparison",
    "RunComparison": "reporting.comparison",
    "RunSummary": "reporting.run_summary",
    "list_run_checkpoints": "run.history",
    "revert_run": "run.history",
    "MetricWriter": "run.metric_writer",
    "InputError": "errors",
    "OptionError": "training.option",
    "OwnCodeError": "errors",
    "PeerError": "errors",
    "RunError": "errors",
}

if TYPE_CHECKING:
    from mnist_dist.artifacts.model_export import ExportedModel as ExportedModel
    from mnist_dist.artifacts.model_export import export_model as export_model
    from mnist_dist.data import Dataset as Dataset
    from mnist_dist.data import dataset_from_arrays as dataset_from_arrays
    from mnist_dist.data import load_dataset as load_dataset
    from mnist_dist.errors import InputError as InputError
    from mnist_dist.errors import OwnCodeError as OwnCodeError
    from mnist_dist.errors import PeerError as PeerError
    from mnist_dist.errors import RunError as RunError
    from mnist_dist.evaluation.model_evaluation import (
        ModelEvaluation as ModelEvaluation,
    )
    from mnist_dist.evaluation.model_evaluation import evaluate_model as evaluate_model
    from mnist_dist.inference.image_predictions import (
        ImagePredictions as ImagePredictions,
    )
    from mnist_dist.inference.image_predictions import predict_images as predict_images
    from mnist_dist.inference.trained_model import TrainedModel as TrainedModel
    from mnist_dist.inference.trained_model import (
        load_trained_model as load_trained_model,
    )
    from mnist_dist.layer_weights.differences import diff_layers as diff_layers
    from mnist_dist.layer_weights.layer_files import save_layers as save_layers
    from mnist_dist.layer_weights.layers import load_layer as load_layer
    from mnist_dist.layer_weights.layers import set_layer as set_layer
    from mnist_dist.layer_weights.run_layers import (
        transplant_layers as transplant_layers,
    )
    from mnist_dist.layer_weights.weight_sources import load_weights as load_weights
    from mnist_dist.reporting.comparison import RunComparison as RunComparison
    from mnist_dist.reporting.comparison import compare_runs as compare_runs
    from mnist_dist.reporting.run_summary import RunSummary as RunSummary
    from mnist_dist.run.history import list_run_checkpoints as list_run_checkpoints
    from mnist_dist.run.history import revert_run as revert_run
    from mnist_dist.run.metric_writer import MetricWriter as MetricWriter
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
