"""A run's checkpoints for a person: what there is, and going back to one of them."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays
from mnist_dist.files.durable import publishing, reporting_errors
from mnist_dist.files.untrusted import quoted
from mnist_dist.run import checkpoints
from mnist_dist.run.directory import list_versions, remove_evaluations
from mnist_dist.run.lock import open_for_writing
from mnist_dist.run.metrics import withdraw_evaluation
from mnist_dist.run.paths import (
    best_dir,
    checkpoint_dir,
    checkpoint_dirs,
    export_dir,
    watch_dir,
)
from mnist_dist.run.records import read_accuracies
from mnist_dist.run.set_aside import list_set_aside_dirs, set_aside_later


class RunCheckpoint(NamedTuple):
    """One checkpoint of a run.

    Attributes:
      step: at which it was saved.
      time: when, in seconds since 1970.
      accuracy: of the evaluation at this step; None if there was none.
      num_bytes: size of its files.
      is_best: whether it is the one kept for its accuracy.
      damage: empty; or why it cannot be read.
      path: as TensorFlow takes it.
      is_set_aside: whether the run went back to an earlier step since, so that it
        goes on from this one only where `--restore` names its path.
    """

    step: int
    time: float
    accuracy: float | None
    num_bytes: int
    is_best: bool
    damage: str
    path: str
    is_set_aside: bool = False


class Reverted(NamedTuple):
    """What became of a run that was sent back.

    Attributes:
      step: from which it goes on.
      set_aside: the paths that later checkpoints had; each is now in a folder
        `later-than-<step>` beside it.
      stale_exports: exports of later steps, which are still there.
    """

    step: int
    set_aside: list[str]
    stale_exports: list[str]


def check_run(model_dir: str) -> None:
    """Checks that a directory is a run's.

    Raises:
      InputError: it is not.
    """
    if not any(map(tf.io.gfile.isdir, checkpoint_dirs(model_dir))):
        raise InputError(
            f"--model_dir: found {quoted(model_dir)} without checkpoints, expected the "
            "directory of a run"
        )


def list_run_checkpoints(model_dir: str) -> list[RunCheckpoint]:
    """Returns all checkpoints of a run, newest first; then those that were set aside.

    Each is read as a whole, so that damage anywhere in it is found.

    Raises:
      InputError: the directory is not a run's.
    """
    check_run(model_dir)
    rows = _list_in(checkpoint_dirs(model_dir), model_dir)
    aside = _list_in(list_set_aside_dirs(model_dir), model_dir)
    # Others may have been evaluated at these steps since.
    return rows + [row._replace(is_set_aside=True, accuracy=None) for row in aside]


def _list_in(directories: Sequence[str], model_dir: str) -> list[RunCheckpoint]:
    accuracies: dict[int, float] = {}
    try:
        accuracies = read_accuracies(model_dir)
    except InputError as error:
        logging.warning("%s", error)
    rows = []
    for directory in directories:
        for step in checkpoints.list_checkpoints(directory):
            path = checkpoints.checkpoint_prefix(directory, step)
            time, num_bytes = checkpoints.stat_step(directory, step)
            damage = ""
            try:
                checkpoints.read_step(directory, step)
            except checkpoints.DAMAGE as error:
                if step not in checkpoints.list_checkpoints(directory):
                    continue  # the run has removed it meanwhile
                damage = f"damaged ({type(error).__name__})"
            rows.append(
                RunCheckpoint(
                    step=step,
                    time=time,
                    accuracy=accuracies.get(step),
                    num_bytes=num_bytes,
                    is_best=directory == best_dir(model_dir),
                    damage=damage,
                    path=path,
                )
            )
    return sorted(rows, key=lambda row: row.step, reverse=True)


def revert_run(model_dir: str, step: int) -> Reverted:
    """Makes a run go on from an earlier checkpoint; the later ones are set aside.

    What `evaluate --watch` recorded of later steps goes too; the run's own metrics and
    events of them are dropped when it is started again.

    Raises:
      InputError: the directory is not a run's, the run is being written, or there is
        no whole checkpoint of this step.
    """
    check_run(model_dir)
    with open_for_writing(model_dir):
        rows = [row for row in list_run_checkpoints(model_dir) if not row.is_set_aside]
        whole = [row for row in rows if row.step == step and not row.damage]
        if not whole:
            steps = sorted({row.step for row in rows if not row.damage}, reverse=True)
            raise InputError(
                f"--step: found {step}, expected one of the whole checkpoints in "
                f"{model_dir}: {', '.join(map(str, steps)) or 'none'}"
            )
        if whole[0].is_best:
            # The best may be replaced by a better one: the run needs its own.
            best = best_dir(model_dir)
            checkpoints.save_checkpoint(
                checkpoints.read_step(best, step),
                graph=checkpoints.load_graph(checkpoints.checkpoint_prefix(best, step)),
                directory=checkpoint_dir(model_dir),
                step=step,
            )
        later = list(set_aside_later(model_dir, step))
        remove_evaluations(watch_dir(model_dir), first_step=step + 1)
    exports = export_dir(model_dir)
    stale = [os.path.join(exports, str(v)) for v in list_versions(exports) if v > step]
    return Reverted(step, later, stale)


def replace_latest(
    model_dir: str, old: Arrays, new: Arrays, *, graph: bytes | None
) -> tuple[str, str]:
    """Puts other weights into a run's newest checkpoint; its evaluation is withdrawn.

    Args:
      model_dir: of a run that nobody else writes.
      old: all that the checkpoint holds.
      new: what it is to hold instead; this function sets its `best/` entries.
      graph: of objects in the checkpoint.

    Returns:
      The path of a copy of the old one, which is no part of the run; and its own.

    Raises:
      InputError: the run's metrics are damaged.
      RunError: something cannot be written.
    """
    step, directory = int(old["step"]), checkpoint_dir(model_dir)
    number = 1
    while tf.io.gfile.exists(aside := os.path.join(directory, f"replaced-{number}")):
        number += 1
    with (
        reporting_errors(aside, so="nothing was changed"),
        publishing(aside, overwrite=False) as staging,
    ):
        checkpoints.save_checkpoint(old, graph=graph, directory=staging, step=step)
    if int(old.get("best/step", -1)) == step:
        new = new | {
            "best/accuracy": np.array(-1.0, np.float64),
            "best/step": np.array(-1, np.int64),
            "best/evaluations_since": np.array(0, np.int64),
        }
    withdraw_evaluation(model_dir, step)
    checkpoints.save_checkpoint(new, graph=graph, directory=directory, step=step)
    return (
        checkpoints.checkpoint_prefix(aside, step),
        checkpoints.checkpoint_prefix(directory, step),
    )
