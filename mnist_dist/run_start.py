"""What a run begins with: where it left off, weights from elsewhere, or nothing."""

from collections.abc import Mapping

import keras
import tensorflow as tf
from absl import logging

from mnist_dist import checkpoints, run_config, run_directory
from mnist_dist.layers import transplant


def find_start(
    model_dir: str,
    *,
    model: keras.Model,
    specs: checkpoints.Specs,
    settings: Mapping[str, object],
    restore: str = "auto",
    overwrite: bool = False,
    override_config: bool = False,
    init_from: str | None = None,
) -> checkpoints.Arrays | None:
    """Finds what a run begins with; changes nothing.

    Args:
      model_dir: of the run, which need not be there.
      model: of the run.
      specs: shape and dtype of all that a checkpoint of the run holds, by name.
      settings: what must not change when a run goes on.
      restore: `auto` (the newest checkpoint), `none`, a step, or a checkpoint's path.
      overwrite: whether the run that is there is to be deleted.
      override_config: whether a run may go on with other settings.
      init_from: where a run without a checkpoint has its initial weights from.

    Returns:
      A checkpoint's arrays; initial weights of some layers, by their names in a
      checkpoint; or None for the model's own.

    Raises:
      InputError: nothing to restore is whole, or fits this run; `init_from` cannot be
        read, or fits no layer.
    """
    if not overwrite:
        if restore != "none" and not override_config:
            run_config.check_settings(model_dir, settings)
        arrays = checkpoints.find_start(
            run_directory.checkpoint_dirs(model_dir), restore=restore, specs=specs
        )
        if arrays is not None:
            return arrays
        records = run_directory.metrics_path(model_dir)
        if tf.io.gfile.exists(records) and tf.io.gfile.stat(records).length:
            logging.warning(
                "%s has records but no checkpoint: the run begins anew, and they go",
                model_dir,
            )
    if not init_from:
        return None
    fit = transplant.load_initial(init_from, model)
    print(transplant.describe_fit(fit), flush=True)
    return transplant.initial_arrays(fit)
