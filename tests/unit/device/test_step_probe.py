"""Figures of the next step, against the step that the train loop then makes."""

import numpy as np
import pytest
import tensorflow as tf
from array_checks import assert_same_bytes

from mnist_dist.cluster.membership import Cluster
from mnist_dist.data import ExampleStream, Split
from mnist_dist.device.feed import DeviceSplit
from mnist_dist.device.step_probe import create_step_probe
from mnist_dist.device.train_loop import create_train_loop
from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling.networks import create_model
from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

SHAPE, CLASSES, BATCH, RATE = (12, 12, 1), 5, 24, 1e-2


@pytest.mark.parametrize(
    ("replicas", "model", "dtype", "clip", "microbatches"),
    [
        (1, "cnn", "float32", 0.0, 0),
        (2, "mlp", "float32", 0.5, 6),
        (2, "mlp", "float16", 0.0, 0),
    ],
)
def test_figures_are_those_of_the_step_and_change_nothing(
    replicas, model, dtype, clip, microbatches, create_strategy
):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, *SHAPE), np.uint8)
    split = Split("train", images, rng.integers(0, CLASSES, 200).astype(np.int32))
    strategy = create_strategy(replicas)
    rule = create_update_rule("sgd", momentum=0.0)
    with strategy.scope():
        state = TrainState(
            create_model(
                model,
                image_shape=SHAPE,
                num_classes=CLASSES,
                seed=7,
                dropout=0.3,
                dtype=dtype,
            ),
            slot_names=rule.slots,
            with_loss_scale=dtype == "float16",
        )
    step = {
        "update_rule": rule,
        "schedule": create_schedule("constant", learning_rate=RATE, total_steps=100),
        "global_batch_size": BATCH,
        "seed": 7,
        "with_augmentation": True,
        "label_smoothing": 0.1,
        "clip_global_norm": clip,
        "num_microbatches": microbatches,
    }
    loop = create_train_loop(strategy, state, **step)
    probe = create_step_probe(strategy, state, cluster=Cluster("one"), **step)
    data = DeviceSplit(strategy, split, is_resident=True)
    stream = ExampleStream(num_examples=200, seed=7)

    def feed(number):
        return data.feed(stream.indices(number * BATCH, BATCH)[np.newaxis])

    control = (tf.constant(1), tf.zeros([2]))
    loop(*feed(0), *control)  # so that no weight is all zeros
    before = state.to_arrays()
    figures = probe(*feed(1))
    assert_same_bytes(state.to_arrays(), before)
    loop(*feed(1), *control)
    after = state.to_arrays()
    moved = {
        path: np.linalg.norm(after[f"model/{path}"] - before[f"model/{path}"])
        for path in state.weight_paths
    }
    assert len(figures.update_ratios) == len(state.parameters)
    tolerance = 1e-3 if dtype == "float32" else 2e-2
    for path, ratio in figures.update_ratios.items():
        expected = moved[path] / np.linalg.norm(before[f"model/{path}"])
        assert ratio == pytest.approx(expected, rel=tolerance), path
    norm = np.linalg.norm(list(moved.values())) / RATE  # as clipped
    found = figures.gradient_norm * figures.clip_factor
    assert found == pytest.approx(norm, rel=tolerance)
    assert (figures.clip_factor < 1) == (clip > 0)
    assert len(figures.worker_seconds) == 1
    assert figures.worker_seconds[0] > 0
