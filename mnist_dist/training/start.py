"""What a run begins with: where it left off, weights from elsewhere, or nothing."""

from collections.abc import Mapping

import keras
import tensorflow as tf
from absl import logging

from mnist_dist.files.arrays import Arrays, Specs
from mnist_dist.layer_weights import transplant
from mnist_dist.run import checkpoint_choice, config, directory
from mnist_dist.run.lock import RunLock, open_for_writing


def claim_run(
    model_dir: str,
    *,
    model: keras.Model,
    specs: Specs,
    settings: Mapping[str, object],
    restore: str,
    overwrite: bool,
    override_config: bool,
    init_from: str | None,
    dry_run: bool,
) -> tuple[Arrays | None, RunLock | None]:
    """Makes this process the writer of a run, and finds what the run begins with.

    Nothing is changed before all is known to be right, and in a dry run nothing at
    all. When a launcher starts a run again, what it was told of `restore` and
    `overwrite` was for the first start.

    Args:
      model_dir: of the run, which need not be there.
      model: of the run.
      specs: shape and dtype of all that a checkpoint of the run holds, by name.
      settings: what must not change when a run goes on.
      restore: `auto` (the newest checkpoint), `none`, a step, or a checkpoint's path.
      overwrite: whether the run that is there is to be deleted.
      override_config: whether a run may go on with other settings.
      init_from: where a run without a checkpoint has its initial weights from.
      dry_run: whether the run is only looked at.

    Returns:
      A checkpoint's arrays; initial weights of some layers, by their names in a
      checkpoint; or None for the model's own. And the lock of `open_for_writing`, to
      be kept while the run is written; None in a dry run.

    Raises:
      InputError: nothing to restore is whole, or fits this run; `init_from` cannot be
        read, or fits no layer; the directory is no run's, cannot be written to, or
        another process writes to it.
      RunError: what is to be overwritten cannot be deleted.
    """
    if config.is_restart(model_dir):
        restore, overwrite = "auto", False
    lock: RunLock | None = None
    # A directory that is not there yet is made once nothing is wrong any more.
    if tf.io.gfile.isdir(model_dir) and not dry_run:
        lock = open_for_writing(model_dir)
    directory.check_directory(model_dir, flag="--model_dir")
    directory.check_contents(model_dir)
    arrays = None
    if not overwrite:
        if restore != "none" and not override_config:
            config.check_settings(model_dir, settings)
        arrays = checkpoint_choice.load_restored(
            directory.checkpoint_dirs(model_dir), restore=restore, specs=specs
        )
        if arrays is None:
            _warn_of_records(model_dir)
    if arrays is None and init_from:
        fit = transplant.load_initial(init_from, model)
        print(transplant.describe_fit(fit), flush=True)
        arrays = transplant.initial_arrays(fit)
    if not dry_run:
        lock = lock or open_for_writing(model_dir)
        if overwrite:
            directory.delete_run(model_dir)
    return arrays, lock


def _warn_of_records(model_dir: str) -> None:
    records = directory.metrics_path(model_dir)
    if tf.io.gfile.exists(records) and tf.io.gfile.stat(records).length:
        logging.warning(
            "%s has records but no checkpoint: the run begins anew, and they go",
            model_dir,
        )
