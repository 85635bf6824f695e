"""Export into one file: `.keras`, to go on with in Keras, and `.tflite`, for devices."""

import os
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from mnist_dist.errors import InputError
from mnist_dist.saved_model import (
    Export,
    check_logits,
    create_serving_module,
    exporting,
    inference_logits,
    noise_images,
    prepare_directory,
)
from mnist_dist.steps import normalize
from mnist_dist.train_state import TrainState

_NUM_VERIFIED_IMAGES = 64


def export_file(
    state: TrainState,
    directory: str,
    *,
    file_format: str,
    image_shape: tuple[int, int, int],
    overwrite: bool = False,
) -> Export:
    """Writes the state's inference weights as `directory/model-<step>.<format>`.

    `keras`: the model as it was built: float images in [0, 1] in, logits out. A model
    with layers of one's own needs their code to be loaded again.
    `tflite`: the signature `serving_default` of the SavedModel.

    Args:
      state: what was trained; it keeps no moving average beside the weights.
      directory: gets the file.
      file_format: `keras` or `tflite`.
      image_shape: height, width, channels.
      overwrite: replace a file of that name that holds another model.

    Raises:
      InputError: there is such a file, the model cannot be written so, or the
        directory cannot be written to.
      RunError: writing it failed, or the file does not compute what the model does.
    """
    prepare_directory(directory)
    name = f"model-{int(state.step.numpy())}.{file_format}"
    path = os.path.join(directory, name)
    images = noise_images(image_shape, _NUM_VERIFIED_IMAGES)
    expected = inference_logits(state, images)
    compute = {"keras": _keras_logits, "tflite": _tflite_logits}[file_format]
    if tf.io.gfile.exists(path) and not overwrite:
        try:
            is_same = np.allclose(compute(path, images), expected, rtol=1e-5, atol=1e-5)
        # Whatever a file of unknown content raises: it is not this model.
        except Exception:
            is_same = False
        if is_same:
            return Export(path, is_new=False)
        raise InputError(
            f"{path}: found another model, expected none or the same; --overwrite "
            "replaces it"
        )
    # Keras and the converter know no paths with a scheme, and go by a name's ending.
    with (
        exporting(path, overwrite=overwrite) as staging,
        tempfile.TemporaryDirectory() as folder,
    ):
        written = os.path.join(folder, name)
        try:
            if file_format == "keras":
                state.model.save(written)
            else:
                _save_tflite(state, written, image_shape=image_shape)
            found = compute(written, images)
        except OSError:
            raise
        # What Keras, its layers and the converter raise has no common type.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"--format={file_format}: the model {state.model.name!r} cannot be "
                f"written so: {reason}"
            ) from error
        check_logits(path, found, expected=expected, dtype=state.model.compute_dtype)
        tf.io.gfile.copy(written, staging)
    return Export(path, is_new=True)


def _keras_logits(path: str, images: np.ndarray) -> np.ndarray:
    # Not safe: a Lambda layer holds code; here it is the user's own.
    model = keras.models.load_model(path, compile=False, safe_mode=False)
    logits = model(normalize(tf.constant(images)), training=False)
    return tf.cast(logits, tf.float32).numpy()


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


def _tflite_logits(path: str, images: np.ndarray) -> np.ndarray:
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
    return interpreter.get_signature_runner("serving_default")(images=images)["logits"]
