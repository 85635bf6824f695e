"""MODEL_DIR: what lies where, and `config.json`, which says how it came about."""

import json
import os
import platform
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

import mnist_dist
from mnist_dist.errors import InputError


def prepare_run_directory(model_dir: str) -> None:
    """Creates the directory of a run.

    Raises:
      InputError: it is a file, or cannot be written to.
    """
    try:
        tf.io.gfile.makedirs(model_dir)
        writable = os.access(model_dir, os.W_OK)
    except tf.errors.OpError as error:
        raise InputError(
            f"--model_dir: found {model_dir!r}, where no directory can be made: "
            f"{error.message}"
        ) from error
    if not tf.io.gfile.isdir(model_dir) or not writable:
        raise InputError(
            f"--model_dir: found {model_dir!r}, expected a directory to write to"
        )


def checkpoint_dir(model_dir: str) -> str:
    """Returns where the newest checkpoints lie."""
    return os.path.join(model_dir, "checkpoints")


def best_dir(model_dir: str) -> str:
    """Returns where the best checkpoint so far lies."""
    return os.path.join(model_dir, "best")


def export_dir(model_dir: str) -> str:
    """Returns where SavedModels lie by default."""
    return os.path.join(model_dir, "export")


def save_config(
    model_dir: str, *, flags: Mapping[str, object], resolved: Mapping[str, object]
) -> None:
    """Writes `config.json`: the flags, what came of them, and versions."""
    config = {
        "flags": dict(flags),
        "resolved": dict(resolved),
        "versions": {
            "mnist_dist": mnist_dist.__version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
    }
    path = os.path.join(model_dir, "config.json")
    with tf.io.gfile.GFile(f"{path}.writing", "w") as file:
        file.write(json.dumps(config, indent=2) + "\n")
    tf.io.gfile.rename(f"{path}.writing", path, overwrite=True)
