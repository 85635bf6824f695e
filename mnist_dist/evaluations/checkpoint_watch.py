"""The checkpoints of a training that goes on, one after the other as they appear."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Literal

import tensorflow as tf
from absl import logging

from mnist_dist import checkpoints
from mnist_dist.durable_files import is_local
from mnist_dist.errors import InputError
from mnist_dist.run_config import RunConfig, load_run_config
from mnist_dist.run_directory import checkpoint_dir

_POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class NewCheckpoint:
    """A checkpoint that appeared.

    Attributes:
      config: of the run, when it was read.
      prefix: its path, as TensorFlow takes it.
      step: of it.
      written: when it was written, in nanoseconds; tells it from one of the same step
        that a run wrote before it was sent back.
      arrays: all that is in it.
    """

    config: RunConfig
    prefix: str
    step: int
    written: int
    arrays: checkpoints.Arrays


def follow_checkpoints(
    model_dir: str,
    visit: Callable[[NewCheckpoint], None],
    *,
    is_stopped: Callable[[], bool],
    timeout: float,
) -> Literal["last", "timeout", "stopped"]:
    """Visits each checkpoint of a run, the oldest first, until the run's last one.

    The run may not have begun yet. Checkpoints that the training removes before they
    are read are passed over, as are damaged ones, with a warning.

    Args:
      model_dir: directory of the run.
      visit: called with each checkpoint once.
      is_stopped: whether to end before the next checkpoint.
      timeout: seconds without a new checkpoint, after which to end.

    Returns:
      Why it ended: the run's `last` checkpoint was visited, the `timeout` passed, or
      it was `stopped`.

    Raises:
      InputError: the run's `config.json` cannot be read.
    """
    directory = checkpoint_dir(model_dir)
    known: dict[int, int] = {}  # step -> when it was written
    is_at_end = False
    waiting_since = time.monotonic()
    while True:
        for step, written in reversed(_list_written(directory)):
            if is_stopped():
                return "stopped"
            if known.get(step) == written:
                continue
            known[step] = written
            found = _read(model_dir, step, written)
            if found is not None:
                visit(found)
                is_at_end = found.config.is_last(found.arrays)
                waiting_since = time.monotonic()
        if is_at_end:
            return "last"
        if is_stopped():
            return "stopped"
        if time.monotonic() - waiting_since >= timeout:
            return "timeout"
        time.sleep(_POLL_SECONDS)


def _list_written(directory: str) -> list[tuple[int, int]]:
    """Returns step and time of each complete checkpoint, newest step first."""
    found = []
    for step in checkpoints.list_checkpoints(directory):
        # The index comes last and goes first.
        index = f"{checkpoints.checkpoint_prefix(directory, step)}.index"
        with contextlib.suppress(FileNotFoundError, tf.errors.NotFoundError):
            found.append((step, _written(index)))
    return found


def _written(path: str) -> int:
    if is_local(path):
        return os.stat(path).st_mtime_ns
    return tf.io.gfile.stat(path).mtime_nsec  # TensorFlow knows whole seconds


def _read(model_dir: str, step: int, written: int) -> NewCheckpoint | None:
    directory = checkpoint_dir(model_dir)
    prefix = checkpoints.checkpoint_prefix(directory, step)
    try:
        arrays = checkpoints.read_step(directory, step)
    except checkpoints.DAMAGE as error:
        if (step, written) in _list_written(directory):
            logging.warning("%s is damaged and skipped: %s", prefix, error)
        return None
    if "step" not in arrays:
        raise InputError(f"{prefix} holds no step: it is not a checkpoint of a run")
    config = load_run_config(model_dir)
    return NewCheckpoint(config, prefix, step, written, arrays)
