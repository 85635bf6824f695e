"""A run's model again, from `config.json` and a checkpoint, under any strategy or none."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from absl import logging

from mnist_dist import checkpoints
from mnist_dist.errors import InputError
from mnist_dist.models import create_model
from mnist_dist.run_directory import best_dir, checkpoint_dir, load_config
from mnist_dist.train_state import TrainState

_TRIES = 5  # at a listing that a running training changes while it is read


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
      total_steps: the last step of the run, unless it stops early.
      target_accuracy: at which the run stops early, if it has one.
      early_stopping_patience: evaluations without a best that stop it; 0: off.
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
    total_steps: int
    target_accuracy: float | None
    early_stopping_patience: int
    contents: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model that holds the weights of one checkpoint.

    Attributes:
      state: the model and its weights; it keeps neither optimizer slots nor an
        average beside them: `state.inference_weights()` are the ones asked for.
      config: of the run.
      checkpoint: path of the checkpoint, as TensorFlow takes it.
      step: of the checkpoint.
      uses_ema: whether the weights are the moving average.
      is_last: whether the run ends with this checkpoint.
    """

    state: TrainState
    config: RunConfig
    checkpoint: str
    step: int
    uses_ema: bool
    is_last: bool


def load_run_config(model_dir: str) -> RunConfig:
    """Reads `MODEL_DIR/config.json`.

    Raises:
      InputError: it is missing, is not JSON, or lacks an entry.
    """
    contents = load_config(model_dir)
    path = os.path.join(model_dir, "config.json")
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
            total_steps=int(resolved["total_steps"]),
            target_accuracy=None if target is None else float(target),
            early_stopping_patience=int(flags["early_stopping_patience"]),
            contents=contents,
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path}: expected the settings of a run, found: {what}"
        ) from error


def load_trained_model(
    model_dir: str, *, checkpoint: str = "latest", use_ema: bool | None = None
) -> TrainedModel:
    """Rebuilds the model of a run with the weights of one of its checkpoints.

    Called within a strategy's scope, the model is that strategy's; which strategy
    wrote the checkpoint makes no difference.

    Args:
      model_dir: directory of the run, which may be going on.
      checkpoint: `latest` (the newest that is whole), `best`, or a step.
      use_ema: whether to take the moving average of the weights; None takes it where
        the run kept one.

    Raises:
      InputError: no such run, step or average, or it is damaged or of another model.
    """
    config = load_run_config(model_dir)
    prefix, arrays = read_checkpoint(model_dir, checkpoint)
    state = create_inference_state(config, model_dir=model_dir)
    return restore(state, config=config, prefix=prefix, arrays=arrays, use_ema=use_ema)


def warn_of_other_data(
    model: str, *, expected: str | None, source: str, found: str
) -> None:
    """Warns if a data set is not the one that a model was trained on.

    Args:
      model: its name.
      expected: checksum of what it was trained on; None or empty if that is not known.
      source: where the data set was read.
      found: its checksum.
    """
    if expected and found != expected:
        logging.warning(
            "%s was trained on other data than what is now in %s (SHA-256 %s..., not "
            "%s...): the results may mean nothing",
            model,
            source,
            found[:12],
            expected[:12],
        )


def create_inference_state(config: RunConfig, *, model_dir: str) -> TrainState:
    """Builds the model of a run with initial weights, and nothing to train it with.

    Raises:
      InputError: the function that builds it is not there, or builds another one.
    """
    try:
        model = create_model(
            config.model,
            image_shape=config.image_shape,
            num_classes=config.num_classes,
            seed=config.seed,
            dropout=config.dropout,
            dtype=config.dtype,
        )
        return TrainState(model, slot_names=())
    except InputError as error:
        raise InputError(
            f"{os.path.join(model_dir, 'config.json')}: {error}"
        ) from error


def read_checkpoint(model_dir: str, checkpoint: str) -> tuple[str, checkpoints.Arrays]:
    """Finds and reads a checkpoint of a run, which may be going on.

    Args:
      model_dir: directory of the run.
      checkpoint: `latest`, `best`, or a step.

    Returns:
      The checkpoint's path, as TensorFlow takes it, and everything in it.

    Raises:
      InputError: there is none, or it is damaged (for `latest`: all are).
    """
    directories = [checkpoint_dir(model_dir), best_dir(model_dir)]
    if checkpoint == "latest":
        return _read_newest(directories[0])
    if checkpoint == "best":
        return _read_newest(directories[1])
    step = int(checkpoint)
    for directory in directories:
        if step in checkpoints.list_checkpoints(directory):
            try:
                return _read_step(directory, step)
            except checkpoints.DAMAGE as error:
                raise InputError(
                    f"{checkpoints.checkpoint_prefix(directory, step)} is damaged: "
                    f"{_first_line(error)}"
                ) from error
    raise InputError(
        f"--checkpoint: found {step}, expected latest, best or one of the steps in "
        f"{directories[0]}: "
        f"{', '.join(map(str, checkpoints.list_checkpoints(directories[0]))) or 'none'}"
    )


def restore(
    state: TrainState,
    *,
    config: RunConfig,
    prefix: str,
    arrays: checkpoints.Arrays,
    use_ema: bool | None = None,
) -> TrainedModel:
    """Sets the weights of a model from what `read_checkpoint` returned.

    Raises:
      InputError: the checkpoint is of another model, or has no average to take.
    """
    source = weights_source(arrays, prefix=prefix, use_ema=use_ema)
    specs = {
        name: spec for name, spec in state.specs().items() if name.startswith("model/")
    }
    weights = {
        f"model/{name.removeprefix(source)}": array
        for name, array in arrays.items()
        if name.startswith(source)
    }
    checkpoints.check_specs(weights, specs=specs, name=prefix)
    if "step" not in arrays:
        raise InputError(f"{prefix} holds no step: it is not a checkpoint of a run")
    state.from_arrays(weights | {"step": arrays["step"]})
    return TrainedModel(
        state=state,
        config=config,
        checkpoint=prefix,
        step=int(arrays["step"]),
        uses_ema=source == "ema/",
        is_last=is_last(arrays, config),
    )


def weights_source(
    arrays: checkpoints.Arrays, *, prefix: str, use_ema: bool | None
) -> Literal["ema/", "model/"]:
    """Returns what the names of the wanted weights begin with in a checkpoint.

    Raises:
      InputError: the moving average is asked for, and there is none.
    """
    has_ema = any(name.startswith("ema/") for name in arrays)
    if use_ema and not has_ema:
        raise InputError(
            f"--use_ema: {prefix} holds no moving average: the run was trained with "
            "--ema_decay=0"
        )
    return "ema/" if has_ema and use_ema is not False else "model/"


def _read_newest(directory: str) -> tuple[str, checkpoints.Arrays]:
    for _ in range(_TRIES):
        steps = checkpoints.list_checkpoints(directory)
        damage = {}
        for step in steps:
            prefix = checkpoints.checkpoint_prefix(directory, step)
            try:
                found = _read_step(directory, step)
            except checkpoints.DAMAGE as error:
                damage[prefix] = f"{type(error).__name__}: {_first_line(error)}"
                continue
            for damaged, reason in damage.items():
                logging.warning("%s is damaged and skipped: %s", damaged, reason)
            return found
        if steps == checkpoints.list_checkpoints(directory):
            break
        # A training that goes on has replaced them all meanwhile.
    if not steps:
        raise InputError(
            f"{directory}: found no checkpoint, expected ckpt-STEP.index and its data"
        )
    reasons = "; ".join(f"{prefix}: {reason}" for prefix, reason in damage.items())
    raise InputError(f"{directory}: every checkpoint is damaged: {reasons}")


def _read_step(directory: str, step: int) -> tuple[str, checkpoints.Arrays]:
    return checkpoints.checkpoint_prefix(directory, step), checkpoints.read_step(
        directory, step
    )


def is_last(arrays: checkpoints.Arrays, config: RunConfig) -> bool:
    """What `TrainingRun.is_done` says at this checkpoint."""
    accuracy = float(arrays.get("best/accuracy", np.float64(-1)))
    without_best = int(arrays.get("best/evaluations_since", np.int64(0)))
    return (
        int(arrays["step"]) >= config.total_steps
        or (config.target_accuracy is not None and accuracy >= config.target_accuracy)
        or 0 < config.early_stopping_patience <= without_best
    )


def _first_line(error: Exception) -> str:
    message = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return message.splitlines()[0] if message else "no reason given"
