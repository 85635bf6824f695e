"""The networks: Keras layers, images in, logits out."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from mnist_dist.errors import InputError
from mnist_dist.modeling import own_models

# A model by its name, or by the function that builds it: `create_model`'s `name`.
ModelChoice = str | Callable[..., keras.Model]


def normalize(images: tf.Tensor) -> tf.Tensor:
    """Maps uint8 images to the float32 in [0, 1] that every model takes."""
    return tf.cast(images, tf.float32) / 255.0


def create_mlp(
    *, image_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.0
) -> keras.Model:
    """The 784-128-10 perceptron, for any image size and number of classes."""
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu", name="dense_layer_1"),
            keras.layers.Dropout(dropout, name="dropout"),
            keras.layers.Dense(num_classes, name="dense_layer_2", dtype="float32"),
        ],
        name="mlp",
    )


def create_cnn(
    *, image_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.0
) -> keras.Model:
    """Three convolutions that halve the image, then one dense layer.

    Strides instead of pooling: on a CPU, where convolutions bound the step, this
    gives the most accuracy a second.
    """
    images = keras.Input(image_shape)
    x = images
    for number, filters in enumerate([32, 64, 128], start=1):
        x = keras.layers.Conv2D(
            filters,
            5 if number == 1 else 3,
            strides=2,
            padding="same",
            activation="relu",
            name=f"conv_layer_{number}",
        )(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    logits = keras.layers.Dense(num_classes, name="dense_layer_1", dtype="float32")(x)
    return keras.Model(images, logits, name="cnn")


def create_cnn_bn(
    *, image_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.0
) -> keras.Model:
    """A narrower `cnn` with BatchNormalization, which learns more from each image.

    The averages for evaluation follow quickly, as its recipe trains for a few hundred
    steps. Source: S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep
    Network Training by Reducing Internal Covariate Shift", 2015.
    """
    images = keras.Input(image_shape)
    x = images
    for number, filters in enumerate([16, 32, 64], start=1):
        x = keras.layers.Conv2D(
            filters,
            5 if number == 1 else 3,
            strides=2,
            padding="same",
            use_bias=False,  # the normalization adds one
            name=f"conv_layer_{number}",
        )(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm_{number}")(x)
        x = keras.layers.ReLU(name=f"relu_{number}")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    logits = keras.layers.Dense(num_classes, name="dense_layer_1", dtype="float32")(x)
    return keras.Model(images, logits, name="cnn_bn")


_MODELS = {"mlp": create_mlp, "cnn": create_cnn, "cnn_bn": create_cnn_bn}


def resolve_model(name: str) -> Callable[..., keras.Model]:
    """Finds the function that builds a model, without building it.

    Args:
      name: `mlp`, `cnn`, `cnn_bn`, or `module:function` for one's own. The function is called
        with the keywords `image_shape` (height, width, channels) and `num_classes`,
        and with `dropout` if it takes that; its model maps float images
        [batch, height, width, channels] in [0, 1] to logits [batch, num_classes].

    Raises:
      InputError: there is no such function.
    """
    if name in _MODELS:
        return _MODELS[name]
    if ":" not in name or name.startswith("."):
        raise InputError(
            f"--model: found {name!r}, expected {', '.join(_MODELS)} or module:function"
        )
    return own_models.import_function(name)


def create_model(
    name: ModelChoice,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
    dropout: float = 0.0,
    dtype: str = "float32",
) -> keras.Model:
    """Builds a model with weights initialised from the seed.

    Args:
      name: as `resolve_model` takes it, or the function itself.
      image_shape: height, width, channels.
      num_classes: width of the logits.
      seed: of the initial weights. Sets Python's, NumPy's and TensorFlow's too.
      dropout: rate before the last layer.
      dtype: of the computation: `float32`, `bfloat16` or `float16`; weights are
        always float32.

    Raises:
      InputError: no such model, or it does not fit the data.
    """
    function = resolve_model(name) if isinstance(name, str) else name
    name = name if isinstance(name, str) else f"{name.__module__}:{name.__qualname__}"
    sizes: dict[str, Any] = {"image_shape": image_shape, "num_classes": num_classes}
    _set_keras_defaults()
    policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(dtype if dtype == "float32" else f"mixed_{dtype}")
    try:
        model = own_models.call_function(function, name, dropout=dropout, **sizes)
        own_models.check_model(model, name, **sizes)
        if name not in _MODELS:
            own_models.check_variables(model, name, image_shape=image_shape)
            own_models.warn_of_habits(model, name)
    finally:
        keras.config.set_dtype_policy(policy)
    return model


def _set_keras_defaults() -> None:
    """Undoes what keras.json and KERAS_BACKEND change: models and kernels count on it.

    Raises:
      InputError: Keras was imported with another backend than TensorFlow.
    """
    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"KERAS_BACKEND: found {keras.config.backend()!r}, expected tensorflow"
        )
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


def freeze_layers(model: keras.Model, layers: Sequence[str]) -> None:
    """Takes layers, and the layers inside them, out of training: `layer.trainable`.

    Args:
      model: before its `TrainState` is built.
      layers: by name; a nested one as its weights are named, `outer/inner`.

    Raises:
      InputError: the model has no such layer with weights, or none is left to train.
    """
    known: dict[str, list[keras.Layer]] = {}
    for layer in model._flatten_layers(include_self=False):
        if layer.weights:
            path = (layer.path or layer.name).removeprefix(f"{model.name}/")
            known.setdefault(path, []).append(layer)
    for name in layers:
        if name not in known:
            raise InputError(
                f"--freeze: found {name!r}, expected layers of {model.name!r}: "
                f"{', '.join(sorted(known))}"
            )
        for layer in known[name]:
            layer.trainable = False
    if layers and not model.trainable_variables:
        raise InputError(
            f"--freeze: found all layers of {model.name!r}, expected one left to train"
        )
