"""`config.json`: what a run was told and became, and what may not change in it."""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import mnist_dist
from mnist_dist.cluster.membership import LAUNCH_ID
from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays
from mnist_dist.files.durable import describe_error, replacing, reporting_errors
from mnist_dist.run.best import Best
from mnist_dist.run.checkpoints import list_checkpoints
from mnist_dist.run.directory import checkpoint_dirs, config_path
from mnist_dist.run.plan import StoppingRule


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What `config.json` says of a run, as far as its model is rebuilt from it.

    Attributes:
      model: `mlp`, `cnn` or `module:function`.
      image_shape: height, width, channels.
      num_classes: width of the logits.
      seed: of the run.
      dropout: rate before the last layer.
      dtype: of the computation.
      data_dir: of the data set it was trained on; None is the bundled MNIST.
      data_checksum: of that data set.
      validation_examples: training examples that were set apart.
      validation_split: how they were drawn, by the seed: `stratified`, or the `last`.
      stopping: when the run ends.
      contents: all of the file.
    """

    model: str
    image_shape: tuple[int, int, int]
    num_classes: int
    seed: int
    dropout: float
    dtype: str
    data_dir: str | None
    data_checksum: str
    validation_examples: int
    validation_split: str
    stopping: StoppingRule
    contents: Mapping[str, Any]

    def is_last(self, arrays: Arrays) -> bool:
        """Whether the run ends with the checkpoint that holds these arrays."""
        step, best = int(arrays["step"]), Best.from_arrays(arrays)
        return self.stopping.reason_to_end(step, best) is not None


def save_config(
    model_dir: str,
    *,
    settings: Mapping[str, object],
    flags: Mapping[str, object],
    resolved: Mapping[str, object],
) -> None:
    """Writes `config.json`.

    Args:
      model_dir: of the run.
      settings: what must not change when the run goes on.
      flags: every flag's value.
      resolved: what came of them.
    """
    config = {
        "settings": dict(settings),
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
    path = config_path(model_dir)
    with (
        reporting_errors(path, so="the checkpoints so far are intact"),
        replacing(path) as file,
    ):
        file.write(json.dumps(config, indent=2).encode() + b"\n")


def load_run_config(model_dir: str) -> RunConfig:
    """Reads `MODEL_DIR/config.json`.

    Raises:
      InputError: it is missing, is not JSON, or lacks an entry.
    """
    contents = load_config(model_dir)
    path = config_path(model_dir)
    if contents is None:
        raise InputError(
            f"--model_dir: found no {path}, expected the directory of a run"
        )
    try:
        settings, flags = contents["settings"], contents["flags"]
        resolved = contents["resolved"]
        height, width, channels = map(int, resolved["image_shape"])
        target = flags["target_accuracy"]
        return RunConfig(
            model=str(settings["model"]),
            image_shape=(height, width, channels),
            num_classes=int(resolved["num_classes"]),
            seed=int(settings["seed"]),
            dropout=float(settings["dropout"]),
            dtype=str(settings["dtype"]),
            data_dir=flags["data_dir"],
            data_checksum=str(settings["data_checksum"]),
            validation_examples=int(settings["validation_examples"]),
            # Before it could be said they were the last.
            validation_split=str(settings.get("validation_split", "last")),
            stopping=StoppingRule(
                total_steps=int(resolved["total_steps"]),
                target_accuracy=None if target is None else float(target),
                early_stopping_patience=int(flags["early_stopping_patience"]),
            ),
            contents=contents,
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path}: expected the settings of a run, found: {what}"
        ) from error


def load_config(model_dir: str) -> dict | None:
    """Reads `config.json`; None where there is none.

    Raises:
      InputError: it is not what `save_config` wrote.
    """
    path = config_path(model_dir)
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            config = json.loads(file.read())
        if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
            raise ValueError("it has no object 'settings'")
        return config
    except (tf.errors.OpError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected the settings of a run, as JSON: {describe_error(error)}"
        ) from error


def load_patience(model_dir: str) -> int | None:
    """Returns the `early_stopping_patience` of a run's last start, if it is known."""
    try:
        flags = (load_config(model_dir) or {}).get("flags")
    except InputError:
        return None
    patience = flags.get("early_stopping_patience") if isinstance(flags, dict) else None
    return patience if isinstance(patience, int) else None


def check_settings(model_dir: str, settings: Mapping[str, object]) -> None:
    """Compares a run's recorded settings with those it is to go on with.

    A run without a checkpoint has nothing to go on from, so nothing can differ.

    Args:
      model_dir: of the run.
      settings: what shapes the results, by flag; and `data_checksum`.

    Raises:
      InputError: names each difference; or `config.json` cannot be read.
    """
    if not any(list_checkpoints(d) for d in checkpoint_dirs(model_dir)):
        return
    config = load_config(model_dir)
    if config is None:
        logging.warning("%s has no config.json to compare settings with", model_dir)
        return
    recorded = config["settings"]
    wanted = json.loads(json.dumps(dict(settings)))
    differences = [
        "--data_dir: found another data set than the run's"
        if name == "data_checksum"
        else f"--{name}: found {value!r}, the run has {recorded[name]!r}"
        for name, value in wanted.items()
        if name in recorded and recorded[name] != value
    ]
    if differences:
        raise InputError(
            f"{'; '.join(differences)}; expected the settings of the run in "
            f"{model_dir}, another --model_dir, or --override_config"
        )


def is_restart(model_dir: str) -> bool:
    """Whether what starts this process, by `LAUNCH_ID`, has started the run before."""
    launch = os.environ.get(LAUNCH_ID)
    if not launch:
        return False
    try:
        config = load_config(model_dir) or {}
    except InputError:
        return False
    resolved = config.get("resolved")
    return isinstance(resolved, dict) and resolved.get(LAUNCH_ID) == launch
