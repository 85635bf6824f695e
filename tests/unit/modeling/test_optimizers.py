import keras
import numpy as np
import pytest
import tensorflow as tf

from mnist_dist.errors import InputError
from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

RULES = {
    "sgd": (
        create_update_rule("sgd", momentum=0.0),
        lambda: keras.optimizers.SGD(0.1),
    ),
    "momentum": (
        create_update_rule("sgd", momentum=0.9),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    ),
    "nesterov": (
        create_update_rule("sgd", momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda: keras.optimizers.SGD(
            0.1, momentum=0.9, nesterov=True, weight_decay=0.01
        ),
    ),
    "adam": (create_update_rule("adam"), lambda: keras.optimizers.Adam(0.1)),
    "adamw": (
        create_update_rule("adamw", weight_decay=0.01),
        lambda: keras.optimizers.AdamW(0.1, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_update_rule_equals_keras(name):
    rule, create_oracle = RULES[name]
    oracle = create_oracle()
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(3, 4)), rng.normal(size=4)]
    oracle_values = [keras.Variable(v, dtype="float32") for v in start]
    if "w" in name or name == "nesterov":
        oracle.exclude_from_weight_decay([oracle_values[1]])
    values = [tf.constant(v, tf.float32) for v in start]
    slots = [[tf.zeros_like(v) for _ in rule.slots] for v in values]
    for step in range(20):
        gradients = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in start]
        oracle.apply(gradients, oracle_values)
        for i, gradient in enumerate(gradients):
            slots[i] = rule.update_slots(gradient, slots[i], tf.constant(0.1))
            values[i] = rule.update_value(
                values[i],
                gradient,
                slots[i],
                tf.constant(0.1),
                tf.constant(step, tf.float32),
            )
    for value, expected in zip(values, oracle_values, strict=True):
        np.testing.assert_allclose(value, expected.numpy(), rtol=2e-5, atol=2e-6)


def rates(name, **kwargs):
    schedule = create_schedule(name, **kwargs)
    return [
        float(schedule(tf.constant(float(s)))) for s in range(kwargs["total_steps"])
    ]


def test_cosine_equals_keras_after_its_warm_up():
    found = rates("cosine", learning_rate=0.5, total_steps=50, warmup_steps=10)
    oracle = keras.optimizers.schedules.CosineDecay(0.5, decay_steps=40)
    np.testing.assert_allclose(
        found[10:], [oracle(s) for s in range(40)], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found[:10], 0.5 * np.arange(1, 11) / 10, rtol=1e-6)


def test_one_cycle_has_the_corners_of_its_source():
    found = rates("one_cycle", learning_rate=1.0, total_steps=101)
    rise = 30.3
    up = [1 / 25 + (1 - 1 / 25) * (1 - np.cos(np.pi * s / rise)) / 2 for s in range(31)]
    np.testing.assert_allclose(found[:31], up, rtol=1e-5)
    np.testing.assert_allclose(found[-1], 1 / 25 / 1e4, rtol=2e-2)
    assert np.all(np.diff(found[31:]) < 0)


def test_wrong_settings_name_the_flag():
    with pytest.raises(InputError, match="--optimizer"):
        create_update_rule("lion")
    with pytest.raises(InputError, match="--weight_decay"):
        create_update_rule("adam", weight_decay=0.1)
    with pytest.raises(InputError, match="--lr_schedule"):
        create_schedule("linear", learning_rate=1, total_steps=2)
    with pytest.raises(InputError, match="--warmup_steps"):
        create_schedule("cosine", learning_rate=1, total_steps=2, warmup_steps=3)
