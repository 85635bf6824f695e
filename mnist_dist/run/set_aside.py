"""Moves later checkpoints out of the way when a run goes back to an earlier step.

They go to a folder `later-than-<step>` beside them, and are no longer part of the run. A
marker is written to each directory before the move and removed after it. While it is
there, checkpoints past the step do not count; and after a kill the next process that
writes to the run completes the move.
"""

import os
import re

import tensorflow as tf

from mnist_dist.files.durable import (
    list_names,
    remove,
    replacing,
    reporting_errors,
    sync,
)
from mnist_dist.run.checkpoints import checkpoint_prefix, list_later
from mnist_dist.run.move_marker import Marker, find_marker
from mnist_dist.run.paths import best_dir, checkpoint_dir

_SO = "no checkpoint is lost"


def set_aside_later(model_dir: str, step: int) -> dict[str, int]:
    """Moves the checkpoints of a run past a step out of the way.

    Only for who alone writes to the run.

    Returns:
      The steps of those moved, by the paths that they had, as TensorFlow takes them.

    Raises:
      RunError: one cannot be moved.
    """
    directories = _directories(model_dir)
    later = {
        checkpoint_prefix(directory, later_step): later_step
        for directory in directories
        for later_step in sorted(list_later(directory, step))
    }
    for directory in directories:
        _mark(directory, step)
    finish_setting_aside(model_dir)
    return later


def finish_setting_aside(model_dir: str) -> None:
    """Completes a move whose process was killed, into the same folders.

    Only for who alone writes to the run.

    Raises:
      RunError: a checkpoint cannot be moved.
    """
    directories = _directories(model_dir)
    marked = [marker.step for marker in map(find_marker, directories) if marker]
    for step in marked:
        for directory in directories:  # one lacks it after a kill between the two
            _mark(directory, step)
    for directory in directories:
        _move(directory)


def list_set_aside_dirs(model_dir: str) -> list[str]:
    """Returns the folders of a run that hold checkpoints which were set aside."""
    return [
        os.path.join(directory, name)
        for directory in _directories(model_dir)
        for name in list_names(directory)
        if re.fullmatch(r"later-than-\d+(\.\d+)?", name)
    ]


def _directories(model_dir: str) -> list[str]:
    # The best first: a run without its newest checkpoints would go on from it.
    return [best_dir(model_dir), checkpoint_dir(model_dir)]


def _mark(directory: str, step: int) -> None:
    if find_marker(directory) or not list_later(directory, step):
        return
    target, number = f"later-than-{step}", 2
    while tf.io.gfile.exists(os.path.join(directory, target)):
        target, number = f"later-than-{step}.{number}", number + 1
    with (
        reporting_errors(directory, so=_SO),
        replacing(Marker(step, target).path(directory)) as file,
    ):
        file.write(b"")


def _move(directory: str) -> None:
    marker = find_marker(directory)
    if marker is None:
        return
    target = os.path.join(directory, marker.folder)
    with reporting_errors(directory, so=_SO):
        tf.io.gfile.makedirs(target)
        for names in list_later(directory, marker.step).values():
            for name in names:
                source = os.path.join(directory, name)
                tf.io.gfile.rename(source, os.path.join(target, name), overwrite=True)
        sync(target)
        sync(directory)
        remove(marker.path(directory))
        sync(directory)
