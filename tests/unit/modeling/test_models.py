"""Models of the user's own, and frozen layers in training."""

import numpy as np
import pytest
import tensorflow as tf
from custom_models import create_small

from mnist_dist.device.train_loop import create_train_loop
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.modeling.networks import create_model, freeze_layers
from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("num_replicas", [1, 3])
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_layers_stay_and_others_start_from_what_was_set(
    num_replicas, frozen, create_strategy
):
    strategy = create_strategy(num_replicas)
    rule = create_update_rule("adamw", weight_decay=0.1)
    with strategy.scope():
        model = create_small()
        freeze_layers(model, ["hidden", "norm"] if frozen else [])
        state = TrainState(model, slot_names=rule.slots, with_ema=True)
    kernel = RNG.normal(size=(784, 8)).astype(np.float32)
    state.from_arrays({"model/hidden/kernel": kernel, "ema/hidden/kernel": kernel})
    train_loop = create_train_loop(
        strategy,
        state,
        update_rule=rule,
        schedule=create_schedule("constant", learning_rate=0.01, total_steps=9),
        global_batch_size=6,
        seed=0,
        ema_decay=0.9,
    )
    before = state.to_arrays()
    np.testing.assert_array_equal(before["model/hidden/kernel"], kernel)
    images = tf.constant(RNG.integers(0, 256, (60, 28, 28, 1), np.uint8))
    labels = tf.constant(RNG.integers(0, 10, 60).astype(np.int32))
    indices = tf.reshape(tf.range(54, dtype=tf.int32), [9, 6])
    train_loop(images, labels, indices, tf.constant(9), tf.zeros([2]))
    after = state.to_arrays()
    for name in before:
        if name.startswith(("model/", "ema/")):
            stays = frozen and "/head/" not in name
            same = before[name].tobytes() == after[name].tobytes()
            assert same == stays, name
    assert any("optimizer/mean/hidden" in name for name in after) != frozen


def test_freezing_names_the_layers_there_are():
    with pytest.raises(InputError, match=r"--freeze: found 'no', .*head, hidden, norm"):
        freeze_layers(create_small(), ["no"])
    with pytest.raises(InputError, match="expected one left to train"):
        freeze_layers(create_small(), ["hidden", "norm", "head"])


@pytest.mark.parametrize(
    "name", ["json:loads", "os:getcwd", "custom_models:create_small"]
)
def test_function_that_takes_something_else_is_refused(name):
    with pytest.raises(InputError, match=f"--model: .*{name}"):
        create_model(name, image_shape=(2, 3, 1), num_classes=4, seed=1)
