"""`config.json`: what a run was told and became, and what may not change in it."""

import dataclasses
import json
import math
import os
import platform
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mnist_dist
from mnist_dist.cluster.membership import LAUNCH_ID
from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays
from mnist_dist.files.durable import replacing, reporting_errors
from mnist_dist.run.best import Best
from mnist_dist.run.checkpoints import list_checkpoints
from mnist_dist.run.config_file import EARLIER_SETTINGS, load_config
from mnist_dist.run.paths import checkpoint_dirs, config_path, flag_file_path
from mnist_dist.run.plan import StoppingRule

_MAX_IMAGE_VALUES = 1 << 24
_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What `config.json` says of a run, as far as its model is rebuilt from it.

    Attributes:
      model: `mlp`, `cnn`, `cnn_bn` or `module:function`.
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
        "versions": versions(),
    }
    path = config_path(model_dir)
    with (
        reporting_errors(path, so="the checkpoints so far are intact"),
        replacing(path) as file,
    ):
        file.write(json.dumps(config, indent=2).encode() + b"\n")


def versions() -> dict[str, str]:
    """Returns the versions of this package, of Python and of what computes."""
    return {
        "mnist_dist": mnist_dist.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def save_flag_file(model_dir: str, flags: Mapping[str, object]) -> None:
    """Writes `config.flags`, with which `train --flagfile=` redoes the run elsewhere.

    Args:
      model_dir: of the run.
      flags: values by name; None and empty lists are left out.

    Raises:
      RunError: it cannot be written.
    """
    lines = ["# mnist-dist train --flagfile=THIS_FILE --model_dir=ANOTHER_DIRECTORY"]
    for name, value in flags.items():
        if isinstance(value, bool):
            lines.append(f"--{name}" if value else f"--no{name}")
        elif isinstance(value, list):
            lines += [f"--{name}={','.join(value)}"] if value else []
        elif value is not None:
            lines.append(f"--{name}={value}")
    path = flag_file_path(model_dir)
    with (
        reporting_errors(path, so="the checkpoints so far are intact"),
        replacing(path) as file,
    ):
        file.write("".join(f"{line}\n" for line in lines).encode())


def load_run_config(model_dir: str) -> RunConfig:
    """Reads `MODEL_DIR/config.json`.

    Raises:
      InputError: it is missing, is no JSON, or lacks an entry or has a wrong one.
    """
    contents = load_config(model_dir)
    path = config_path(model_dir)
    if contents is None:
        raise InputError(
            f"--model_dir: found no {path}, expected the directory of a run"
        )
    try:
        return _parse_run_config(contents)
    except ValueError as error:
        raise InputError(
            f"{path}: expected the settings of a run, found: {error}"
        ) from error


def _parse_run_config(contents: dict[str, Any]) -> RunConfig:
    """Takes the entries that a `RunConfig` needs; raises ValueError at a wrong one."""
    settings, flags = contents["settings"], contents["flags"]
    resolved = contents["resolved"]
    shape = _entry(resolved, "image_shape", list)
    if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"'image_shape' is {shape!r}, not height, width and channels")
    if math.prod(shape) > _MAX_IMAGE_VALUES:
        raise ValueError(f"'image_shape' is {shape!r}, images too large to be any")
    height, width, channels = shape
    return RunConfig(
        model=_entry(settings, "model", str),
        image_shape=(height, width, channels),
        num_classes=_entry(resolved, "num_classes", int, 2, 1 << 16),
        seed=_entry(settings, "seed", int, 0, (1 << 32) - 1),
        dropout=_entry(settings, "dropout", float, 0, 0.99),
        dtype=_entry(settings, "dtype", str, choices=_DTYPES),
        data_dir=_entry(flags, "data_dir", str, is_optional=True),
        data_checksum=_entry(settings, "data_checksum", str),
        validation_examples=_entry(settings, "validation_examples", int, 0, 1 << 31),
        validation_split=_entry(
            EARLIER_SETTINGS | settings,
            "validation_split",
            str,
            choices=("stratified", "last"),
        ),
        stopping=StoppingRule(
            total_steps=_entry(resolved, "total_steps", int, 1, 1 << 62),
            target_accuracy=_entry(
                flags, "target_accuracy", float, 0, 1, is_optional=True
            ),
            early_stopping_patience=_entry(
                flags, "early_stopping_patience", int, 0, 1 << 62
            ),
        ),
        contents=contents,
    )


def _entry(
    section: Mapping[str, Any],
    name: str,
    kind: type[Any],
    lowest: float = 0,
    highest: float = 0,
    *,
    choices: Sequence[str] = (),
    is_optional: bool = False,
) -> Any:
    """Returns an entry of this type, within these bounds if they differ."""
    if name not in section:
        raise ValueError(f"no {name!r}")
    value: Any = section[name]
    if value is None and is_optional:
        return None
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 53 else value
    shown = f"{name!r} is {reprlib.repr(value)}"
    if type(value) is not kind:
        raise ValueError(f"{shown}, not of type {kind.__name__}")
    if lowest != highest and not lowest <= value <= highest:
        raise ValueError(f"{shown}, not within {lowest:g} to {highest:g}")
    if choices and value not in choices:
        raise ValueError(f"{shown}, not {' or '.join(choices)}")
    return value


def load_patience(model_dir: str) -> int | None:
    """Returns the `early_stopping_patience` of a run's last start, if it is known."""
    try:
        flags = (load_config(model_dir) or {}).get("flags", {})
    except InputError:
        return None
    patience = flags.get("early_stopping_patience")
    return patience if isinstance(patience, int) else None


def check_settings(model_dir: str, settings: Mapping[str, object]) -> None:
    """Compares a run's recorded settings with those it is to go on with.

    A run without a checkpoint has nothing to go on from, so nothing can differ.

    Args:
      model_dir: of the run.
      settings: what shapes the results, by flag; and `data_checksum`.

    Raises:
      InputError: names each difference; or `config.json` is missing, or cannot be read.
    """
    if not any(list_checkpoints(d) for d in checkpoint_dirs(model_dir)):
        return
    config = load_config(model_dir)
    if config is None:
        raise InputError(
            f"--model_dir: found checkpoints in {model_dir} but no config.json to "
            "compare settings with, expected both; --override_config goes on with them, "
            "--overwrite deletes them"
        )
    recorded = EARLIER_SETTINGS | config["settings"]
    wanted = json.loads(json.dumps(dict(settings)))
    differences = [
        "--data_dir: found another data set than the run's"
        if name == "data_checksum"
        else f"--{name}: found {value!r}, the run has {reprlib.repr(recorded[name])}"
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
    return config.get("resolved", {}).get(LAUNCH_ID) == launch
