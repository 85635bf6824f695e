"""How a run begins: look, check, claim, and bring the directory to that step.

A run begins where its newest checkpoint left off, or at another one that is asked for,
with weights from elsewhere, or with nothing. Nothing on disk changes before all that
can be wrong is known to be right.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf
from absl import logging

from mnist_dist.files.arrays import Arrays, Specs
from mnist_dist.layer_weights import transplant
from mnist_dist.run import checkpoint_choice, checkpoints, config, directory, paths
from mnist_dist.run.best import Best
from mnist_dist.run.lock import RunLock, open_for_writing
from mnist_dist.run.metric_writer import MetricWriter
from mnist_dist.run.metrics import check_metrics
from mnist_dist.run.plan import StoppingRule
from mnist_dist.run.run_log import RunLog
from mnist_dist.run.set_aside import set_aside_later


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with, in a directory that holds nothing of later steps.

    Attributes:
      arrays: a checkpoint's; initial weights of some layers by their names in a
        checkpoint; or empty, for the weights that the model was built with.
      step: updates done; 0 for a run that begins.
      best: the best evaluation so far.
      log: the run's records, open for writing.
      lock: to be closed when the run is no longer written.
      checkpoint: path of what it goes on from; None for a run that begins.
      set_aside: steps of the later checkpoints that were moved out of the way.
    """

    arrays: Arrays
    step: int
    best: Best
    log: RunLog
    lock: RunLock
    checkpoint: str | None
    set_aside: Sequence[int]


def restore_run(
    model_dir: str,
    *,
    model: keras.Model,
    specs: Specs,
    stopping: StoppingRule,
    settings: Mapping[str, object],
    restore: str,
    overwrite: bool,
    override_config: bool,
    init_from: str | None,
    dry_run: bool,
    say: Callable[[str], None],
    writers: Sequence[MetricWriter] = (),
) -> Start | None:
    """Makes this process the writer of a run, and finds what the run begins with.

    When a launcher starts a run again, what it was told of `restore` and `overwrite`
    was for the first start.

    Args:
      model_dir: of the run, which need not be there.
      model: of the run.
      specs: shape and dtype of all that a checkpoint of the run holds, by name.
      stopping: when the run ends; under another rule than before the evaluations since
        the best are counted anew.
      settings: what must not change when a run goes on.
      restore: `auto` (the newest checkpoint), `none`, a step, or a checkpoint's path.
      overwrite: whether the run that is there is to be deleted.
      override_config: whether a run may go on with other settings.
      init_from: where a run without a checkpoint has its initial weights from.
      dry_run: whether all is only checked, and nothing changed.
      say: takes what a person should know of it.
      writers: more that take the metrics of the run.

    Returns:
      What the run begins with; None in a dry run.

    Raises:
      InputError: nothing to restore is whole, or fits this run; `init_from` cannot be
        read, or fits no layer; the directory is no run's, cannot be written to, or
        another process writes to it; the records of the run are damaged.
      RunError: the directory cannot be brought to that step.
    """
    if config.is_restart(model_dir):
        restore, overwrite = "auto", False
    with contextlib.ExitStack() as held:
        # Look. A directory that is not there yet is made once nothing is wrong any more.
        lock: RunLock | None = None
        if tf.io.gfile.isdir(model_dir) and not dry_run:
            lock = held.enter_context(open_for_writing(model_dir))

        # Check.
        directory.check_directory(model_dir, flag="--model_dir")
        directory.check_contents(model_dir)
        checkpoint, arrays = None, Arrays()
        if not overwrite:
            checkpoint, arrays = _load_checkpoint(
                model_dir,
                specs=specs,
                settings=settings,
                restore=restore,
                override_config=override_config,
            )
        if checkpoint is None and init_from:
            fit = transplant.load_initial(init_from, model)
            say(transplant.describe_fit(fit))
            arrays = transplant.initial_arrays(fit)
        elif init_from:
            say("init_from      is not read: the run goes on with its own weights")
        if dry_run:
            if checkpoint:
                say(f"would go on    from {checkpoint} (step {int(arrays['step']):,})")
            return None

        # Claim.
        if lock is None:
            lock = held.enter_context(open_for_writing(model_dir))
        if overwrite:
            directory.delete_run(model_dir)

        start = _bring_to_step(
            model_dir,
            checkpoint,
            arrays,
            lock=lock,
            stopping=stopping,
            writers=writers,
        )
        held.pop_all()  # the lock stays held: nothing went wrong
        return start


def _load_checkpoint(
    model_dir: str,
    *,
    specs: Specs,
    settings: Mapping[str, object],
    restore: str,
    override_config: bool,
) -> tuple[str | None, Arrays]:
    """Finds what a run goes on from, and checks that it is this run's."""
    if restore != "none" and not override_config:
        config.check_settings(model_dir, settings)
    checkpoint, arrays = checkpoint_choice.load_restored(
        paths.checkpoint_dirs(model_dir),
        restore=restore,
        specs=specs,
        takes_new_slots=override_config,
    )
    check_metrics(model_dir)
    _warn_of_records(model_dir, checkpoint)
    return checkpoint, arrays


def _warn_of_records(model_dir: str, checkpoint: str | None) -> None:
    """Warns where a run has records but no checkpoint, or the reverse."""
    records = paths.metrics_path(model_dir)
    are_there = tf.io.gfile.exists(records)
    if checkpoint is None:
        if are_there and tf.io.gfile.stat(records).length:
            logging.warning(
                "%s has records but no checkpoint: the run begins anew, and they go",
                model_dir,
            )
        return
    # One that --restore names by its path may be another run's.
    is_own = os.path.dirname(checkpoint) in paths.checkpoint_dirs(model_dir)
    if is_own and not are_there:
        logging.warning(
            "%s is gone, and what it had recorded: its records begin again here",
            records,
        )


def _bring_to_step(
    model_dir: str,
    checkpoint: str | None,
    arrays: Arrays,
    *,
    lock: RunLock,
    stopping: StoppingRule,
    writers: Sequence[MetricWriter],
) -> Start:
    """Takes what is later than a checkpoint out of the run, and opens its records."""
    step = int(arrays["step"]) if checkpoint else 0
    set_aside = sorted(set(set_aside_later(model_dir, step).values()))
    log = RunLog(model_dir, resume_step=step, lock=lock, writers=writers)
    with contextlib.ExitStack() as held:
        held.callback(log.close)
        best = _restore_best(
            model_dir, arrays, checkpoint, step=step, log=log, stopping=stopping
        )
        held.pop_all()  # the log stays open: nothing went wrong
    return Start(arrays, step, best, log, lock, checkpoint, set_aside)


def _restore_best(
    model_dir: str,
    arrays: Arrays,
    checkpoint: str | None,
    *,
    step: int,
    log: RunLog,
    stopping: StoppingRule,
) -> Best:
    """Returns the best so far, whose checkpoint is kept in `best/`."""
    folder = paths.best_dir(model_dir)
    best = Best.from_arrays(arrays)
    is_kept = best.step in checkpoints.list_checkpoints(folder)
    if not is_kept and best.step != step:
        best = Best()  # its checkpoint is gone
    # Killed between the record of an evaluation and the checkpoint that knows it.
    accuracy = log.eval_accuracy(step)
    if accuracy is not None and accuracy > best.accuracy:
        best, is_kept = Best(accuracy, step), False
    if best.step == step and not is_kept and "step" in arrays:
        checkpoints.save_checkpoint(
            arrays | best.to_arrays(),
            graph=checkpoints.load_graph(checkpoint) if checkpoint else None,
            directory=folder,
            step=step,
            max_to_keep=1,
        )
    if config.load_patience(model_dir) != stopping.early_stopping_patience:
        best.evaluations_since = 0  # under another rule they are counted anew
    return best
