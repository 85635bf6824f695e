"""All weights of a run's model in the form that `keras.Model.load_weights` takes."""

import os
import tempfile

import tensorflow as tf

from mnist_dist.files.durable import FILE_ERRORS, publishing
from mnist_dist.inference.trained_model import TrainedModel, load_trained_model
from mnist_dist.layer_weights.layer_files import write_error
from mnist_dist.run.checkpoint_choice import parse_prefix

ENDING = ".weights.h5"


def save_keras_weights(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    checkpoint: str | None = None,
    use_ema: bool | None = None,
) -> TrainedModel:
    """Writes a model's weights to a file, replacing one that is there, in one step.

    Keras goes by the kinds of the layers and their order, not by their names; layers
    without weights, such as dropout, do not count.

    Args:
      source: a run's directory, or a checkpoint of it (`RUN/checkpoints/ckpt-100`).
      path: of the file, `NAME.weights.h5`.
      checkpoint: of a run: `latest`, `best`, or a step; None is `latest`.
      use_ema: whether to take the moving average of the weights; None takes it where
        the run kept one.

    Returns:
      The model whose weights were written.

    Raises:
      InputError: there is no such run or checkpoint, it is damaged, or nothing can be
        written there.
      RunError: the disk is full.
    """
    source, path = os.fspath(source), os.fspath(path)
    if tf.io.gfile.exists(f"{source.removesuffix('.index')}.index"):
        directory, step = parse_prefix(source, flag="--from")
        source, checkpoint = os.path.dirname(directory), str(step)
    trained = load_trained_model(
        source, checkpoint=checkpoint or "latest", use_ema=use_ema
    )
    try:
        # Keras goes by a name's ending, and knows no paths with a scheme.
        with tempfile.TemporaryDirectory() as folder:
            written = os.path.join(folder, f"model{ENDING}")
            trained.state.model.save_weights(written)
            with publishing(path) as staging:
                tf.io.gfile.copy(written, staging)
    except FILE_ERRORS as error:
        raise write_error(path, error) from error
    return trained
