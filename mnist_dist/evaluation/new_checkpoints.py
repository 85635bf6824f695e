"""The checkpoints of a training that goes on, one after the other as they appear."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Literal

import tensorflow as tf
from absl import logging

from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays
from mnist_dist.files.durable import is_local
from mnist_dist.run import checkpoints
from mnist_dist.run.activity import is_being_written
from mnist_dist.run.config import RunConfig, load_run_config
from mnist_dist.run.paths import checkpoint_dir, config_path

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0  # in which a training that was started may come to write


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
    arrays: Arrays


def follow_checkpoints(
    model_dir: str,
    visit: Callable[[NewCheckpoint], None],
    *,
    is_stopped: Callable[[], bool],
    timeout: float,
    training_since: float | None = None,
) -> Literal["last", "timeout", "stopped"]:
    """Visits each checkpoint of a run, the oldest first, until the run's last one.

    The run may not have begun yet. Checkpoints that the training removes before they
    are read are passed over, as are damaged ones, with a warning.

    A finished run may be about to be made longer, or started over, and its last
    checkpoint is then not the last one. It is the last if no process writes to the run,
    and it appeared while it was waited for, or nobody has come to write for some time:
    `_GRACE_SECONDS`, or the `timeout` while a training that is to come has not come.

    Args:
      model_dir: directory of the run.
      visit: called with each checkpoint once.
      is_stopped: whether to end before the next checkpoint.
      timeout: seconds without a new checkpoint, after which to end.
      training_since: when a training of this run was started together with this, in
        seconds since 1970; it may be over before the first look. None: none was.

    Returns:
      Why it ended: the run's `last` checkpoint was visited, the `timeout` passed, or
      it was `stopped`.

    Raises:
      InputError: the run's `config.json` cannot be read.
    """
    directory = checkpoint_dir(model_dir)
    known: dict[int, int] = {}  # step -> when it was written
    newest: NewCheckpoint | None = None
    has_appeared = False  # the newest one, while it was waited for
    is_first_look = True
    is_to_come = training_since is not None
    waiting_since = unwritten_since = time.monotonic()
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
                newest = found
                has_appeared = not is_first_look or _is_since(written, training_since)
                waiting_since = time.monotonic()
        is_first_look = False
        if newest is not None and _is_last(model_dir, newest):
            is_written = is_being_written(model_dir)
            if is_written:
                unwritten_since = time.monotonic()
            if is_written or _has_come(model_dir, training_since):
                is_to_come = False
            grace = timeout if is_to_come else min(timeout, _GRACE_SECONDS)
            is_over = has_appeared or time.monotonic() - unwritten_since >= grace
            if is_over and not is_written:
                return "last"
        if is_stopped():
            return "stopped"
        if time.monotonic() - waiting_since >= timeout:
            return "timeout"
        time.sleep(_POLL_SECONDS)


def _has_come(model_dir: str, training_since: float | None) -> bool:
    # Each start of a training writes the settings anew.
    with contextlib.suppress(FileNotFoundError, tf.errors.NotFoundError):
        return _is_since(_written(config_path(model_dir)), training_since)
    return False


def _is_since(written: int, training_since: float | None) -> bool:
    # A file system may know whole seconds alone.
    return training_since is not None and written >= (training_since - 1) * 1e9


def _is_last(model_dir: str, found: NewCheckpoint) -> bool:
    # By what the settings are now: they say so when a finished run goes on.
    with contextlib.suppress(InputError):  # it is started over, and has none yet
        return load_run_config(model_dir).is_last(found.arrays)
    return False


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
    try:
        config = load_run_config(model_dir)
    except InputError:
        if (step, written) in _list_written(directory):
            raise
        return None  # the run is started over
    return NewCheckpoint(config, prefix, step, written, arrays)
