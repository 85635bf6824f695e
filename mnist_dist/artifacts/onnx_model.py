"""Models in ONNX: written by tf2onnx, and read again by ONNX Runtime.

Both come with `pip install 'mnist-dist[onnx]'`.
"""

import importlib
import importlib.util
import logging

import tensorflow as tf

from mnist_dist.artifacts.saved_model import create_serving_module
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.inference.split_predictions import LogitsFunction

# The newest that tf2onnx writes.
_OPERATOR_SET = 18
_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
_ERRORS_ALONE = 3  # ONNX Runtime's severity


def check_installed() -> None:
    """Checks that what writes and reads ONNX is there, before anything is computed.

    Raises:
      InputError: names what is missing, and what installs it.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format=onnx: needs the packages {', '.join(missing)}, which are not "
            "installed: pip install 'mnist-dist[onnx]'"
        )


def save_model(
    state: TrainState, path: str, *, image_shape: tuple[int, int, int]
) -> None:
    """Writes the state's inference weights with what `serving_default` computes.

    The input `images` is uint8 [batch, height, width, channels]; the outputs are
    `probabilities`, `classes` and `logits`, as in the SavedModel, for any batch.

    Args:
      state: what was trained.
      path: of the file.
      image_shape: height, width, channels.

    Raises:
      Exception: of any type; the converter has none of its own for all it finds.
    """
    onnx, tf2onnx = map(importlib.import_module, ("onnx", "tf2onnx"))
    # It reports its versions, and each operation that it cannot convert.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    module = create_serving_module(state, image_shape=image_shape)
    spec = tf.TensorSpec([None, *image_shape], tf.uint8, name="images")
    model, _ = tf2onnx.convert.from_function(
        module.serving_default, input_signature=[spec], opset=_OPERATOR_SET
    )
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # An operation that ONNX does not have is left in the graph under TensorFlow's name.
    onnx.checker.check_model(model)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def load_model(path: str) -> LogitsFunction:
    """Loads a model with ONNX Runtime, on the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ALONE
    with open(path, "rb") as file:
        content = file.read()
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"images": images})[0]
