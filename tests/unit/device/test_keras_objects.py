"""A checkpoint of a run, read by tf.train.Checkpoint into a model that a person built."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from run_factory import random_arrays

from mnist_dist.device.keras_objects import find_keras_objects
from mnist_dist.device.train_state import TrainState
from mnist_dist.run.checkpoint_writer import CheckpointWriter

SHAPE = (6, 5, 1)


def layers(dropout):
    return [
        keras.layers.Conv2D(3, 3, name="conv"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dropout(dropout, name="dropout"),
        keras.layers.Dense(4, name="head"),
    ]


def sequential():
    return keras.Sequential([keras.Input(SHAPE), *layers(dropout=0.0)], name="run")


def functional():
    images = outputs = keras.Input(SHAPE)
    for layer in layers(dropout=0.3):
        outputs = layer(outputs)
    return keras.Model(images, outputs)


def nested():
    block = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten()], name="block")
    block.add(keras.layers.Dense(5, name="inner"))
    outer = [keras.Input(SHAPE), block, keras.layers.Dense(4, name="head")]
    return keras.Sequential(outer)


class Subclassed(keras.Model):
    """Its attributes have the names of their layers, as paths in a checkpoint do."""

    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten(name="flatten")
        self.head = keras.layers.Dense(4, name="head")
        self(tf.zeros([1, *SHAPE]))

    def call(self, images):
        return self.head(self.flatten(images))


@pytest.mark.parametrize("with_ema", [False, True])
@pytest.mark.parametrize(
    ("of_the_run", "by_hand"),
    [
        (sequential, sequential),
        (sequential, functional),
        (functional, sequential),
        (functional, functional),
        (nested, nested),
        (Subclassed, Subclassed),
    ],
)
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_every_weight_of_a_model_built_by_hand_is_the_runs(
    create_strategy, tmp_path, num_replicas, of_the_run, by_hand, with_ema
):
    with create_strategy(num_replicas).scope():
        state = TrainState(of_the_run(), slot_names=("mean",), with_ema=with_ema)
    arrays = random_arrays(state, seed=1)
    writer = CheckpointWriter(find_keras_objects(state))
    writer.save(arrays, directory=str(tmp_path), step=3, max_to_keep=1)
    writer.close()

    model = by_hand()
    latest = tf.train.latest_checkpoint(tmp_path)
    status = tf.train.Checkpoint(model=model).restore(latest)
    status.assert_existing_objects_matched()
    assert model.weights
    for weight in model.weights:
        path = weight.path.removeprefix(f"{model.name}/")
        expected = arrays[f"{'ema' if with_ema else 'model'}/{path}"]
        np.testing.assert_array_equal(weight.numpy(), expected)


def test_a_model_of_other_layers_is_told(tmp_path):
    state = TrainState(sequential(), slot_names=())
    writer = CheckpointWriter(find_keras_objects(state))
    writer.save(
        random_arrays(state, seed=1), directory=str(tmp_path), step=3, max_to_keep=1
    )
    writer.close()
    other = keras.Sequential([keras.Input(SHAPE), *layers(0.0), keras.layers.Dense(2)])
    status = tf.train.Checkpoint(model=other).restore(str(tmp_path / "ckpt-3"))
    with pytest.raises(AssertionError):
        status.assert_existing_objects_matched()
