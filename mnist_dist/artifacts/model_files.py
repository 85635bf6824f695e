"""Export into one file: `.keras` for Keras, `.tflite` for devices, `.onnx` for others."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from mnist_dist.artifacts import litert, onnx_model
from mnist_dist.artifacts.saved_model import Export
from mnist_dist.artifacts.staging import exporting, prepare_directory
from mnist_dist.artifacts.verification import (
    check_logits,
    evaluate_export,
    inference_logits,
    noise_images,
)
from mnist_dist.data import Split
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError, RunError
from mnist_dist.files.durable import (
    describe_error,
    publishing,
    remove,
    reporting_errors,
)
from mnist_dist.inference import model_card
from mnist_dist.inference.split_predictions import LogitsFunction
from mnist_dist.modeling.networks import normalize
from mnist_dist.run.config import RunConfig

FILE_FORMATS = ("keras", "tflite", "onnx")

_NUM_VERIFIED_IMAGES = 64
_SO = "nothing was published"
_MAX_REASON = 500  # characters


def export_file(
    state: TrainState,
    directory: str,
    *,
    file_format: str,
    config: RunConfig,
    uses_ema: bool,
    evaluation: Split | None,
    evaluation_checksum: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Writes the state's inference weights as `directory/model-<step>.<format>`.

    `keras`: the model as it was built: float images in [0, 1] in, logits out. A model
    with layers of one's own needs their code to be loaded again.
    `tflite`: the signature `serving_default` of the SavedModel. A model that
    LiteRT has no operations for, as for recurrent layers that are not unrolled, is
    refused.
    `onnx`: what `serving_default` computes, for a batch of any size. The state's model
    computes in float32.

    Beside it lies its model card, `model-<step>.<format>.json`.

    Args:
      state: what was trained; it keeps no moving average beside the weights.
      directory: gets the file.
      file_format: one of `FILE_FORMATS`.
      config: of the run, for the model card.
      uses_ema: whether the inference weights are a moving average.
      evaluation: images and labels whose results go on the model card.
      evaluation_checksum: of the data set that they are of; None: the run's.
      overwrite: replace a file of that name that holds another model.

    Raises:
      InputError: there is such a file, the model cannot be written so, or the
        directory cannot be written to.
      RunError: writing it failed, or the file does not compute what the model does.
    """
    prepare_directory(directory)
    content = model_card.identify_model(state, config=config)
    name = f"model-{content['step']}.{file_format}"
    path = os.path.join(directory, name)
    if model_card.holds_model(path, content):
        return Export(path, is_new=False)
    if tf.io.gfile.exists(path) and not overwrite:
        raise InputError(
            f"{path}: found another model, expected none or the same; --overwrite "
            "replaces it"
        )
    images = noise_images(config.image_shape, _NUM_VERIFIED_IMAGES)
    expected = inference_logits(state, images)
    # Keras and the converter know no paths with a scheme, and go by a name's ending.
    with reporting_errors("a temporary directory", so=_SO):
        temporary = tempfile.TemporaryDirectory()
    with temporary as folder:
        written = os.path.join(folder, name)
        with _reporting_unwritable(written, state.model, file_format=file_format):
            if file_format == "keras":
                state.model.save(written)
                logits = _load_keras(written)
            elif file_format == "onnx":
                onnx_model.save_model(state, written, image_shape=config.image_shape)
                logits = onnx_model.load_model(written)
            else:
                litert.save_model(state, written, image_shape=config.image_shape)
                logits = litert.load_model(written)
            found = logits(images)
        check_logits(path, found, expected=expected, dtype=state.model.compute_dtype)
        results = evaluate_export(logits, evaluation, num_classes=config.num_classes)
        about = model_card.describe_model(
            state,
            config=config,
            uses_ema=uses_ema,
            evaluation=results,
            evaluation_checksum=evaluation_checksum,
        )
        with reporting_errors(model_card.card_path(written), so=_SO):
            model_card.save_model_card(written, content | about)
        _publish(written, path, overwrite=overwrite)
    return Export(path, is_new=True)


@contextlib.contextmanager
def _reporting_unwritable(
    written: str, model: keras.Model, *, file_format: str
) -> Iterator[None]:
    """Turns what writing a model raises into an error of one line.

    Raises:
      InputError: the format cannot hold the model.
      RunError: the temporary file cannot be written.
    """
    try:
        yield
    except InputError:
        raise
    # What Keras, its layers and the converter raise has no common type.
    except Exception as error:
        if isinstance(error, OSError) or os.path.dirname(written) in str(error):
            raise RunError(
                f"{written} cannot be written: {describe_error(error)}; {_SO}"
            ) from error
        raise InputError(
            f"--format={file_format}: the model {model.name!r} cannot be written so: "
            f"{_first_paragraph(error)}"
        ) from error


def _first_paragraph(error: Exception) -> str:
    """Returns in one line what Keras says first, which it breaks into several."""
    words = str(error).strip().partition("\n\n")[0].split()
    return " ".join(words)[:_MAX_REASON] or type(error).__name__


def _publish(written: str, path: str, *, overwrite: bool) -> None:
    """Gives a file and its card their names; one never lies beside another's.

    A new file comes after its card: one without a card, as a kill between the two would
    leave it, is taken for another model. A file that replaces another comes between the
    end of that one's card and its own.
    """
    card, written_card = model_card.card_path(path), model_card.card_path(written)
    if tf.io.gfile.exists(path):
        with exporting(path, overwrite=overwrite) as staging:
            tf.io.gfile.copy(written, staging)
            remove(card)
        with (
            reporting_errors(card, so=f"{path} was published without its card"),
            publishing(card) as staging,
        ):
            tf.io.gfile.copy(written_card, staging)
        return
    # A card without a file is what a killed export left.
    with exporting(card, overwrite=tf.io.gfile.exists(card)) as staging:
        tf.io.gfile.copy(written_card, staging)
    try:
        with exporting(path, overwrite=overwrite) as staging:
            tf.io.gfile.copy(written, staging)
    except (InputError, RunError):
        remove(card)
        raise


def _load_keras(path: str) -> LogitsFunction:
    # Not safe: a Lambda layer holds code; here it is the user's own.
    model = keras.models.load_model(path, compile=False, safe_mode=False)

    def logits(images: np.ndarray) -> np.ndarray:
        outputs = model(normalize(tf.constant(images)), training=False)
        return tf.cast(outputs, tf.float32).numpy()

    return logits
