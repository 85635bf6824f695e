"""A run's model again, from `config.json` and a checkpoint, under any strategy or none."""

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Literal

import numpy as np
import tensorflow as tf

from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays, check_specs
from mnist_dist.modeling.networks import ModelChoice, create_model
from mnist_dist.run import checkpoint_choice
from mnist_dist.run.config import RunConfig, load_run_config
from mnist_dist.run.paths import best_dir, checkpoint_dirs, config_path


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
    """

    state: TrainState
    config: RunConfig
    checkpoint: str
    step: int
    uses_ema: bool


def load_trained_model(
    model_dir: str,
    *,
    model: ModelChoice | None = None,
    checkpoint: str = "latest",
    use_ema: bool | None = None,
    dtype: str | None = None,
) -> TrainedModel:
    """Rebuilds the model of a run with the weights of one of its checkpoints.

    Called within a strategy's scope, the model is that strategy's; which strategy
    wrote the checkpoint makes no difference.

    Args:
      model_dir: directory of the run, which may be going on.
      model: builds the run's model: a function, or `module:function`; None is what the
        run names.
      checkpoint: `latest` (the newest that is whole), `best`, or a step.
      use_ema: whether to take the moving average of the weights; None takes it where
        the run kept one.
      dtype: of the computation; None is the run's.

    Raises:
      InputError: no such run, step or average, or it is damaged or of another model.
    """
    config = load_run_config(model_dir)
    prefix, arrays = read_checkpoint(model_dir, checkpoint)
    state = create_inference_state(
        config, model_dir=model_dir, model=model, dtype=dtype
    )
    return restore(state, config=config, prefix=prefix, arrays=arrays, use_ema=use_ema)


def create_inference_state(
    config: RunConfig,
    *,
    model_dir: str,
    model: ModelChoice | None = None,
    dtype: str | None = None,
) -> TrainState:
    """Builds the model of a run with initial weights, and nothing to train it with.

    A module that a run names is code: it is imported from where Python finds its
    modules, and never from the run's directory or, by a program, the working one.

    Raises:
      InputError: the function that builds it is not there, or builds another one.
    """
    try:
        with _keeping_random_state():
            built = create_model(
                model or config.model,
                image_shape=config.image_shape,
                num_classes=config.num_classes,
                seed=config.seed,
                dropout=config.dropout,
                dtype=dtype or config.dtype,
            )
        return TrainState(built, slot_names=())
    except InputError as error:
        if model:
            raise
        raise InputError(f"{config_path(model_dir)}: {error}") from error


def read_checkpoint(model_dir: str, checkpoint: str) -> tuple[str, Arrays]:
    """Finds and reads a checkpoint of a run, which may be going on.

    Args:
      model_dir: directory of the run.
      checkpoint: `latest`, `best`, or a step.

    Returns:
      The checkpoint's path, as TensorFlow takes it, and everything in it.

    Raises:
      InputError: there is none, or it is damaged (for `latest`: all are).
    """
    every, best = checkpoint_dirs(model_dir), [best_dir(model_dir)]
    if checkpoint in ("latest", "best"):
        directories = every if checkpoint == "latest" else best
        found = checkpoint_choice.read_newest(directories)
        if found is None:
            raise InputError(
                f"{directories[0]}: found no checkpoint, expected ckpt-STEP.index and "
                "its data"
            )
        return found
    return checkpoint_choice.read_named_step(
        every, checkpoint, flag="--checkpoint", words="latest, best"
    )


def restore(
    state: TrainState,
    *,
    config: RunConfig,
    prefix: str,
    arrays: Arrays,
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
    check_specs(weights, specs=specs, name=prefix)
    if "step" not in arrays:
        raise InputError(f"{prefix} holds no step: it is not a checkpoint of a run")
    state.from_arrays(weights | {"step": arrays["step"]})
    return TrainedModel(
        state=state,
        config=config,
        checkpoint=prefix,
        step=int(arrays["step"]),
        uses_ema=source == "ema/",
    )


def weights_source(
    arrays: Arrays, *, prefix: str, use_ema: bool | None
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


@contextlib.contextmanager
def _keeping_random_state() -> Iterator[None]:
    """Sets Python's and NumPy's random state back, and TensorFlow's to its seed."""
    python, numpy = random.getstate(), np.random.get_state()
    seed, _ = tf.compat.v1.random.get_seed(None)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        tf.random.set_seed(seed)
