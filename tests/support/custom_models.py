"""Models as a user may write them, for `--model=custom_models:FUNCTION`."""

import keras
import numpy as np
import tensorflow as tf


def create_mixed(*, image_shape, num_classes):
    """Lambda, batch normalisation and dropout: what training and inference do apart."""
    images = keras.Input(image_shape)
    x = keras.layers.Lambda(lambda v: v * 2.0 - 1.0, name="centre")(images)
    x = keras.layers.Conv2D(5, 1, name="mix")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(num_classes, name="head")(x)
    return keras.Model(images, logits, name="mixed")


def create_small(name="mine", hidden="hidden"):
    """Weights of every kind in a model that takes no time to build."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu", name=hidden),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(10, name="head"),
        ],
        name=name,
    )


def create_penalized(*, image_shape, num_classes):
    """Penalties of all kinds: of weights, of activities, and two that a layer adds."""
    return _create_penalized(image_shape, num_classes, activity_regularizer="l2")


def create_penalized_by_means(*, image_shape, num_classes):
    """All but of activities, of which Keras 3.12 takes the sum over the examples."""
    return _create_penalized(image_shape, num_classes, activity_regularizer=None)


def _create_penalized(image_shape, num_classes, *, activity_regularizer):
    class Penalty(keras.layers.Layer):
        def call(self, x):
            self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
            self.add_loss(0.2 * keras.ops.mean(keras.ops.abs(x), axis=0))
            return x

    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(
                8,
                activation="relu",
                kernel_regularizer="l2",
                activity_regularizer=activity_regularizer,
                name="hidden",
            ),
            keras.layers.BatchNormalization(synchronized=True, name="norm"),
            Penalty(),
            keras.layers.Dense(
                num_classes, activity_regularizer=activity_regularizer, name="head"
            ),
        ],
        name="penalized",
    )


def create_zooming(*, image_shape, num_classes):
    """XLA cannot compile what the first layer does, which it does in training alone."""
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.RandomZoom(0.2),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, name="head"),
        ],
        name="zooming",
    )


def create_flipping(*, image_shape, num_classes):
    """Random layers whose generators have other names than Dropout's."""

    class Jitter(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.own = [keras.random.SeedGenerator(1), keras.random.SeedGenerator(1)]

        def call(self, x, training=False):
            if not training:
                return x
            first, second = (
                keras.random.uniform((x.shape[0], 1, 1, 1), seed=s) for s in self.own
            )
            return x + first - second

    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.RandomFlip("horizontal", seed=123456789, name="flip"),
            Jitter(),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, name="head"),
        ],
        name="flipping",
    )


def create_dropping(*, image_shape, num_classes, dropout):
    """One dropout layer that is called twice, the first time on rows of images."""
    height, width, channels = image_shape
    images = keras.Input(image_shape)
    drop = keras.layers.Dropout(dropout, name="drop")
    x = keras.layers.Lambda(
        lambda v: keras.ops.reshape(v, (-1, width * channels)), name="rows"
    )(images)
    x = drop(x)
    x = keras.layers.Lambda(
        lambda v: keras.ops.reshape(v, (-1, height * width * channels)), name="flat"
    )(x)
    x = drop(x)
    logits = keras.layers.Dense(num_classes, name="head")(x)
    return keras.Model(images, logits, name="dropping")


SPIED: list[np.ndarray] = []


def create_spied(*, image_shape, num_classes, dropout):
    """Adds what its dropout layer gives to `SPIED`, one array for each replica's step."""

    class Spy(keras.layers.Layer):
        def call(self, x):
            tf.numpy_function(lambda a: SPIED.append(a.copy()), [x], [])
            return x

    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            keras.layers.Dropout(dropout),
            Spy(),
            keras.layers.Dense(num_classes),
        ]
    )


class Subclassed(keras.Model):
    """A model that is not made of a graph of layers: it knows no shape of its input."""

    def __init__(self, *, image_shape, num_classes):
        super().__init__(name="subclassed")
        self.flatten = keras.layers.Flatten()
        self.head = keras.layers.Dense(num_classes, name="head")

    def call(self, images, training=False):
        return self.head(self.flatten(images))


def mixed_logits(weights, images):
    """What `create_mixed` computes in inference, in NumPy.

    Args:
      weights: by `<layer>/<weight>`.
      images: uint8.
    """
    x = images / 255.0 * 2.0 - 1.0
    x = x @ weights["mix/kernel"][0, 0] + weights["mix/bias"]
    x = (x - weights["norm/moving_mean"]) / np.sqrt(
        weights["norm/moving_variance"] + 1e-3
    )
    x = np.maximum(x * weights["norm/gamma"] + weights["norm/beta"], 0)
    return x.mean(axis=(1, 2)) @ weights["head/kernel"] + weights["head/bias"]


def _create_recurrent(kind, **options):
    """Reads the rows of an image one after the other."""

    def create(*, image_shape, num_classes):
        height, width, channels = image_shape
        return keras.Sequential(
            [
                keras.Input(image_shape),
                keras.layers.Reshape((height, width * channels)),
                kind(4, name="rows", **options),
                keras.layers.Dense(num_classes, name="head"),
            ],
            name="recurrent",
        )

    return create


_DROPOUT = {"dropout": 0.2, "recurrent_dropout": 0.2}
create_lstm = _create_recurrent(keras.layers.LSTM, **_DROPOUT)
create_gru = _create_recurrent(keras.layers.GRU, **_DROPOUT)
create_simple_rnn = _create_recurrent(keras.layers.SimpleRNN, **_DROPOUT)
create_unrolled = _create_recurrent(keras.layers.LSTM, unroll=True, **_DROPOUT)
