"""Export: a SavedModel that needs no code of ours, checked before it gets its name."""

import os

import keras
import numpy as np
import tensorflow as tf

from mnist_dist.checkpoints import nest
from mnist_dist.steps import normalize
from mnist_dist.train_state import TrainState, weight_path


def export_saved_model(
    state: TrainState, directory: str, *, sample_images: np.ndarray
) -> str:
    """Writes the state's inference weights as `directory/<step>/`.

    Signatures: `serving_default` takes `images` uint8 [batch, height, width,
    channels]; `serving_float` takes them as float32 in [0, 1]. Both return
    `probabilities` float32 [batch, num_classes], `classes` int64 [batch] and
    `logits` float32 [batch, num_classes].

    Args:
      state: what was trained.
      directory: gets a folder named by the step, as TensorFlow Serving wants it.
      sample_images: uint8, whose predictions must survive the round trip.

    Returns:
      The path of the version.

    Raises:
      RuntimeError: the SavedModel does not predict what the model does.
    """
    step = int(state.step.numpy())
    path = os.path.join(directory, str(step))
    # TensorFlow Serving looks at numbers only, and must never see half a model.
    staging = os.path.join(directory, f".writing-{step}")
    if tf.io.gfile.isdir(staging):
        tf.io.gfile.rmtree(staging)
    module = create_serving_module(state)
    tf.saved_model.save(
        module,
        staging,
        signatures={
            "serving_default": module.classify_uint8,
            "serving_float": module.classify_float,
        },
    )
    _verify(staging, state, sample_images)
    if tf.io.gfile.isdir(path):
        tf.io.gfile.rmtree(path)
    tf.io.gfile.rename(staging, path)
    return path


def create_serving_module(state: TrainState) -> tf.Module:
    """Builds a module with its own copy of the weights, outside any strategy."""
    model = state.model
    keras_weights = state.keras_parameters + state.keras_statistics
    copies = [tf.Variable(v.numpy()) for v in state.inference_weights()]
    mapping = list(zip(keras_weights, copies, strict=True))
    shape = [None, *model.input_shape[1:]]

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        with keras.StatelessScope([(k, tf.identity(v)) for k, v in mapping]):
            logits = tf.cast(model(images, training=False), tf.float32)
        return {
            "probabilities": tf.nn.softmax(logits),
            "classes": tf.argmax(logits, axis=1),
            "logits": logits,
        }

    module = tf.Module()
    module.model = nest({weight_path(model, k): v for k, v in mapping})
    module.classify_uint8 = tf.function(
        lambda images: classify(normalize(images)),
        input_signature=[tf.TensorSpec(shape, tf.uint8, name="images")],
    )
    module.classify_float = tf.function(
        classify, input_signature=[tf.TensorSpec(shape, tf.float32, name="images")]
    )
    return module


def _verify(path: str, state: TrainState, images: np.ndarray) -> None:
    serve = tf.saved_model.load(path).signatures["serving_default"]
    found = serve(images=tf.constant(images))["logits"].numpy()
    weights = [v.numpy() for v in state.inference_weights()]
    keras_weights = state.keras_parameters + state.keras_statistics
    with keras.StatelessScope(
        [(k, tf.constant(w)) for k, w in zip(keras_weights, weights, strict=True)]
    ):
        expected = state.model(normalize(tf.constant(images)), training=False)
    expected = tf.cast(expected, tf.float32).numpy()
    # bfloat16 rounds to 8 bits, and may do so in another order here.
    tolerance = 1e-4 if state.model.compute_dtype == "float32" else 2e-2
    if not np.allclose(found, expected, rtol=tolerance, atol=tolerance * 10):
        worst = np.max(np.abs(found - expected))
        raise RuntimeError(
            f"{path}: the SavedModel's logits differ from the model's by up to "
            f"{worst}; it was not published"
        )
