"""Export into one file: `.keras`, to go on with in Keras, and `.tflite`, for devices."""

import os
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from mnist_dist.artifacts import model_card
from mnist_dist.artifacts.saved_model import Export, create_serving_module
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
from mnist_dist.inference.split_predictions import LogitsFunction
from mnist_dist.modeling.networks import normalize
from mnist_dist.run.config import RunConfig

FILE_FORMATS = ("keras", "tflite")

_NUM_VERIFIED_IMAGES = 64
_SO = "nothing was published"


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
    `tflite`: the signature `serving_default` of the SavedModel.

    Beside it lies its model card, `model-<step>.<format>.json`.

    Args:
      state: what was trained; it keeps no moving average beside the weights.
      directory: gets the file.
      file_format: `keras` or `tflite`.
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
        try:
            if file_format == "keras":
                state.model.save(written)
                logits = _load_keras(written)
            else:
                _save_tflite(state, written, image_shape=config.image_shape)
                logits = _load_tflite(written)
            found = logits(images)
        # What Keras, its layers and the converter raise has no common type.
        except Exception as error:
            if isinstance(error, OSError) or folder in str(error):
                raise RunError(
                    f"{written} cannot be written: {describe_error(error)}; {_SO}"
                ) from error
            raise InputError(
                f"--format={file_format}: the model {state.model.name!r} cannot be "
                f"written so: {describe_error(error)}"
            ) from error
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


def _save_tflite(
    state: TrainState, path: str, *, image_shape: tuple[int, int, int]
) -> None:
    saved_model = f"{path}.saved_model"
    module = create_serving_module(state, image_shape=image_shape)
    tf.saved_model.save(
        module, saved_model, signatures={"serving_default": module.serving_default}
    )
    converter = tf.lite.TFLiteConverter.from_saved_model(
        saved_model, signature_keys=["serving_default"]
    )
    with open(path, "wb") as file:
        file.write(converter.convert())


def _load_tflite(path: str) -> LogitsFunction:
    with warnings.catch_warnings():
        # TensorFlow announces that another package will have the interpreter.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(
            model_path=path,
            # Delegates tell of themselves on standard error.
            experimental_op_resolver_type=(
                tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
    serve = interpreter.get_signature_runner("serving_default")
    return lambda images: serve(images=images)["logits"]
