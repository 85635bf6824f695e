"""Models for LiteRT, once named TensorFlow Lite: written, and read again."""

import importlib
import re
import warnings

import tensorflow as tf

from mnist_dist.artifacts.saved_model import create_serving_module
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.inference.split_predictions import LogitsFunction

_SIGNATURE = "serving_default"


def save_model(
    state: TrainState, path: str, *, image_shape: tuple[int, int, int]
) -> None:
    """Writes the state's inference weights with the signature `serving_default`.

    Args:
      state: what was trained.
      path: of the file; a folder `<path>.saved_model` is left beside it.
      image_shape: height, width, channels.

    Raises:
      InputError: the model needs operations that LiteRT does not have.
      Exception: of any type; the converter has none of its own for all it finds.
    """
    saved_model = f"{path}.saved_model"
    module = create_serving_module(state, image_shape=image_shape)
    tf.saved_model.save(
        module, saved_model, signatures={_SIGNATURE: module.serving_default}
    )
    converter = tf.lite.TFLiteConverter.from_saved_model(
        saved_model, signature_keys=[_SIGNATURE]
    )
    # Where LiteRT has no operation, TensorFlow's is taken, to be named in the error: a
    # converter that may not take it prints pages. The lists of tensors that recurrent
    # layers keep their states in are such: LiteRT's take one batch size only.
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    converter._experimental_lower_tensor_list_ops = False
    content = converter.convert()
    if operations := sorted(set(re.findall(rb"\0Flex([A-Z]\w+)\0", content))):
        raise InputError(
            f"--format=tflite: the model {state.model.name!r} needs TensorFlow's "
            f"Select ops {b', '.join(operations).decode()}, which LiteRT's interpreter "
            "does not have; a recurrent layer with unroll=True needs none"
        )
    with open(path, "wb") as file:
        file.write(content)


def load_model(path: str) -> LogitsFunction:
    """Loads a model with LiteRT's interpreter, or TensorFlow's if that is not there."""
    try:
        litert = importlib.import_module("ai_edge_litert.interpreter")
        interpreter_class, resolvers = litert.Interpreter, litert.OpResolverType
    except ImportError:
        interpreter_class = tf.lite.Interpreter
        resolvers = tf.lite.experimental.OpResolverType
    with warnings.catch_warnings():
        # TensorFlow announces that another package will have the interpreter.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = interpreter_class(
            model_path=path,
            # Delegates tell of themselves on standard error.
            experimental_op_resolver_type=resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    serve = interpreter.get_signature_runner(_SIGNATURE)
    return lambda images: serve(images=images)["logits"]
