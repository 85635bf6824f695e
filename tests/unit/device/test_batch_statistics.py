"""BatchNormalization's statistics over training batches, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from run_factory import random_arrays

from mnist_dist.data import Split
from mnist_dist.device.batch_statistics import create_renew_statistics
from mnist_dist.device.feed import DeviceSplit
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.training.batches import Batches

SHAPE, BATCH, PART = (4, 3, 1), 8, 4


def create():
    keras.utils.set_random_seed(1)  # of dropout
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(5, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.5),
            keras.layers.BatchNormalization(name="after"),
            keras.layers.BatchNormalization(name="frozen", trainable=False),
            keras.layers.Dense(3, name="head"),
        ]
    )


def renewed(strategy, *, with_ema, num_batches=3, first_step=2):
    """Arrays before and after; and the images of each batch, in order."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, *SHAPE), np.uint8)
    split = Split("train", images, np.zeros(50, np.int32))
    with strategy.scope():
        state = TrainState(create(), slot_names=(), with_ema=with_ema)
    before = random_arrays(state, seed=1)
    state.from_arrays(before)
    data = DeviceSplit(strategy, split, is_resident=True)
    batches = Batches(data, global_batch_size=BATCH, seed=3, steps_per_loop=5)
    feed = batches.feed(first_step, num_batches)
    renew = create_renew_statistics(strategy, state, part_size=PART)
    renew(*feed, tf.constant(num_batches), tf.constant(first_step * BATCH, tf.int64))
    norms = [x for x in state.model.layers if hasattr(x, "momentum")]
    assert [layer.momentum for layer in norms] == [0.99] * 3  # as they were
    taken = images[feed[2].numpy()[:num_batches].reshape(-1)]
    return before, state.to_arrays(), taken


@pytest.mark.parametrize("with_ema", [False, True])
def test_statistics_are_the_mean_of_those_of_the_parts(create_strategy, with_ema):
    before, after, images = renewed(create_strategy(1), with_ema=with_ema)
    kind = "ema" if with_ema else "model"
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {
        f"{kind}/{layer}/moving_{name}"
        for layer in ("norm", "after")
        for name in ("mean", "variance")
    }
    x = images.reshape(len(images), -1).astype(np.float64) / 255
    outputs = x @ before[f"{kind}/first/kernel"] + before[f"{kind}/first/bias"]
    parts = outputs.reshape(-1, PART, 5)
    for name, expected in (("mean", parts.mean(1)), ("variance", parts.var(1))):
        found = after[f"{kind}/norm/moving_{name}"]
        # Rounding of float32 in one product and a mean.
        np.testing.assert_allclose(found, expected.mean(0), rtol=1e-5, atol=1e-6)


def test_the_bits_are_those_of_any_number_of_replicas(create_strategy):
    _, one, _ = renewed(create_strategy(1), with_ema=True)
    _, two, _ = renewed(create_strategy(2), with_ema=True)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_model_without_such_layers_is_refused():
    bare = keras.Sequential([keras.Input(SHAPE), keras.layers.Dense(2)])
    state = TrainState(bare, slot_names=())
    strategy = tf.distribute.get_strategy()
    with pytest.raises(InputError, match="--statistics_batches: found a model without"):
        create_renew_statistics(strategy, state, part_size=4)
