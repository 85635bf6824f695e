"""What random layers draw."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from custom_models import create_flipping

from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling.randomness import at_position, make_layers_follow_stream

# What version 0.1.0 kept with the seed 7, of four examples from position 24.
DRAWN_BEFORE = [
    [[1, 0, 0], [0, 0, 0]],
    [[1, 0, 0], [0, 1, 0]],
    [[1, 1, 0], [1, 1, 0]],
    [[1, 0, 0], [1, 0, 1]],
]


def draw(layer, *, first, num_examples, shape=(2, 3, 1)):
    """What a layer makes of examples that all look like [[1, 2, 3], [4, 5, 6]]."""
    images = tf.reshape(tf.range(1.0, 7.0), shape)
    with at_position(tf.constant(first, tf.int64), num_examples=num_examples):
        return layer(tf.stack([images] * num_examples), training=True).numpy()


def test_dropout_draws_what_it_drew_in_earlier_versions():
    model = keras.Sequential(
        [
            keras.Input((2, 3)),
            keras.layers.Dropout(0.0),
            keras.layers.Dropout(0.5),
            keras.layers.SpatialDropout1D(0.4),
        ]
    )
    make_layers_follow_stream(model, seed=7)
    found = draw(model, first=24, num_examples=4, shape=(2, 3))
    np.testing.assert_array_equal(found != 0, np.array(DRAWN_BEFORE, bool))


def test_layer_called_again_draws_anew_and_each_trace_the_same():
    layers = [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0)]
    for layer in layers:
        model = keras.Sequential([keras.Input((16,)), layer])
        make_layers_follow_stream(model, seed=7)

        def draw_twice(layer=layer):
            with at_position(tf.constant(0, tf.int64), num_examples=4):
                drawn = [layer(tf.ones((4, 16)), training=True) for _ in range(2)]
            return np.array(drawn)

        first, second = draw_twice()
        assert np.any(first != second)
        np.testing.assert_array_equal(draw_twice(), [first, second])


def test_rows_of_an_example_are_its_own_whoever_has_it():
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dropout(0.5)])
    make_layers_follow_stream(model, seed=7)
    num_rows = 3

    def masks(first, num_examples):
        rows = tf.ones((num_examples * num_rows, 16))
        with at_position(tf.constant(first, tf.int64), num_examples=num_examples):
            return model(rows, training=True).numpy()

    whole = masks(0, 8)
    assert len(np.unique(np.concatenate([whole, masks(8, 8)]), axis=0)) == 48
    np.testing.assert_array_equal(np.concatenate([masks(0, 4), masks(4, 4)]), whole)


@pytest.mark.parametrize("num_rows", [1, 6])
def test_rows_that_are_no_examples_draw_anew_at_each_position(num_rows):
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dropout(0.5)])
    make_layers_follow_stream(model, seed=7)
    drawn = []
    for first in (0, 4, 0):
        with at_position(tf.constant(first, tf.int64), num_examples=4):
            drawn.append(model(tf.ones((num_rows, 16)), training=True).numpy())
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert len(np.unique(np.concatenate(drawn[:2]), axis=0)) == 2 * num_rows


def test_dropout_of_the_users_own_drops_in_its_own_way():
    class Halving(keras.layers.Dropout):
        def call(self, inputs, training=False):
            return super().call(inputs, training=training) / 2.0

    model = keras.Sequential([keras.Input((2, 3, 1)), Halving(0.5)])
    make_layers_follow_stream(model, seed=7)
    found = draw(model, first=0, num_examples=8)
    assert set(np.unique(found)) == {0, 1, 2, 3, 4, 5, 6}
    assert np.any(found != draw(model, first=8, num_examples=8))


def test_layers_with_generators_of_any_name_draw_anew_at_each_position():
    model = create_flipping(image_shape=(2, 3, 1), num_classes=2)
    before = [v.numpy() for v in model.non_trainable_variables]
    make_layers_follow_stream(model, seed=7)
    for layer in model.layers[:2]:
        drawn = [draw(layer, first=f, num_examples=16) for f in (0, 16, 32, 16)]
        np.testing.assert_array_equal(drawn[1], drawn[3])
        assert len(np.unique(drawn[:3], axis=0)) == 3
        assert len(np.unique(drawn[0], axis=0)) == (2 if layer.name == "flip" else 16)
    # Two generators of one layer draw apart: one draw is taken from the other.
    assert np.all(drawn[0][:, 0, 0, 0] != 1)
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_seeds_are_no_part_of_a_run():
    model = create_flipping(image_shape=(2, 3, 1), num_classes=2)
    state = TrainState(model, slot_names=(), with_ema=True)
    kinds = {
        f"{kind}/head/{v}" for kind in ("model", "ema") for v in ("kernel", "bias")
    }
    assert {n for n in state.specs() if n.startswith(("model/", "ema/"))} == kinds
