"""Models as a user may get them wrong, for `--model=wrong_models:FUNCTION`."""

import keras
import tensorflow as tf


def _head(x, num_classes, **options):
    return keras.layers.Dense(num_classes, **options)(keras.layers.Flatten()(x))


def create_two_outputs(*, image_shape, num_classes):
    images = keras.Input(image_shape)
    return keras.Model(images, [_head(images, num_classes), _head(images, 1)])


def create_dict(*, image_shape, num_classes):
    images = keras.Input(image_shape)
    return keras.Model(images, {"logits": _head(images, num_classes)})


def create_two_inputs(*, image_shape, num_classes):
    images, more = keras.Input(image_shape), keras.Input(image_shape)
    return keras.Model([images, more], _head(images + more, num_classes))


def create_flat(*, image_shape, num_classes):
    images = keras.Input((784,))
    return keras.Model(images, keras.layers.Dense(num_classes)(images))


def create_too_many_poolings(*, image_shape, num_classes):
    images = x = keras.Input(image_shape)
    for _ in range(9):
        x = keras.layers.MaxPooling2D()(x)
    return keras.Model(images, _head(x, num_classes))


def create_name_error(*, image_shape, num_classes):
    return keras.Sequential([keras.Input(image_shape), nonsense])  # noqa: F821


class Dense(keras.layers.Layer):
    """A layer's class in the place of a function."""

    def __init__(self, *, image_shape, num_classes):
        super().__init__()


class _Hiding(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.hidden = (lambda v: lambda: v)(tf.Variable(2.0, name="scale"))

    def call(self, x):
        return x * self.hidden()


def create_hiding(*, image_shape, num_classes):
    images = keras.Input(image_shape)
    return keras.Model(images, _head(_Hiding()(images), num_classes))


def create_softmax(*, image_shape, num_classes):
    images = keras.Input(image_shape)
    return keras.Model(images, _head(images, num_classes, activation="softmax"))


def create_rescaling(*, image_shape, num_classes):
    images = keras.Input(image_shape)
    x = keras.layers.Rescaling(1 / 255, name="scaled")(images)
    return keras.Model(images, _head(x, num_classes))
