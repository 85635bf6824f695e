"""The loops as TensorFlow would place them on GPUs, read from its registry of kernels.

No GPU is needed, so this says nothing of what the kernels compute or how fast.
"""

import contextlib

import gpu_placement
import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework import config  # determinism has no public way off

from mnist_dist.device import xla
from mnist_dist.device.evaluate_loop import create_evaluate_loop
from mnist_dist.device.train_loop import create_train_loop
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.modeling.networks import create_model
from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

SHAPE, CLASSES, BATCH, EXAMPLES = (28, 28, 1), 10, 128, 10_000
MAX_HOST_BYTES = 4096
MAX_STEP_OPERATIONS = 22  # of a replica, outside of what XLA compiles

# What says in TensorFlow 2.21 that it has no deterministic GPU kernel: read from the
# messages in its library.
RAISES_WHERE_DETERMINISTIC = {
    *("AdjustContrast", "AdjustContrastv2", "Bincount", "DenseBincount"),
    *("CropAndResizeGradBoxes", "CropAndResizeGradImage", "ResizeNearestNeighborGrad"),
    *("FakeQuantWithMinMaxVarsGradient", "FakeQuantWithMinMaxVarsPerChannelGradient"),
    *("SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"),
    *("SparseTensorDenseMatMul", "ScatterAdd", "ScatterUpdate", "ScatterSub"),
}

pytestmark = pytest.mark.skipif(
    not gpu_placement.has_gpu_kernels(), reason="this TensorFlow has no GPU kernels"
)


def create_normalized(*, image_shape, num_classes, dropout):
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Conv2D(8, 3, strides=2, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.SpatialDropout2D(dropout),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, name="head", dtype="float32"),
        ]
    )


def trace(strategy, *, model, dtype, use_xla, num_microbatches=0, label_smoothing=0.1):
    """The train loop and the evaluate loop, traced but never run."""
    rule = create_update_rule("adamw", weight_decay=1e-3)
    with strategy.scope():
        network = create_model(
            model,
            image_shape=SHAPE,
            num_classes=CLASSES,
            seed=1,
            dropout=0.1,
            dtype=dtype,
        )
        state = TrainState(
            network,
            slot_names=rule.slots,
            with_ema=True,
            with_loss_scale=dtype == "float16",
        )
    train_loop = create_train_loop(
        strategy,
        state,
        update_rule=rule,
        schedule=create_schedule("one_cycle", learning_rate=1e-3, total_steps=100),
        global_batch_size=BATCH,
        seed=1,
        with_augmentation=True,
        label_smoothing=label_smoothing,
        clip_global_norm=1.0,
        ema_decay=0.99,
        use_xla=use_xla,
        num_microbatches=num_microbatches,
    )
    evaluate_loop = create_evaluate_loop(
        strategy, state, use_xla=use_xla, on_any_replicas=num_microbatches > 0
    )
    replicas = strategy.num_replicas_in_sync
    images = tf.TensorSpec([EXAMPLES, *SHAPE], tf.uint8)
    labels = tf.TensorSpec([EXAMPLES], tf.int64)
    yield train_loop.get_concrete_function(
        images,
        labels,
        tf.TensorSpec([8, BATCH], tf.int64),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([2], tf.float32),
    )
    yield evaluate_loop.get_concrete_function(
        images, labels, tf.TensorSpec([2, replicas, 250], tf.int64)
    )


@contextlib.contextmanager
def traced_as_on_gpus(monkeypatch):
    """Has what asks for GPUs find one; strategies are on logical CPUs all the same."""
    with monkeypatch.context() as patch:
        patch.setattr(tf.config, "list_logical_devices", lambda _: [None])
        yield


NORMALIZED = f"{__name__}:create_normalized"


@pytest.mark.parametrize(
    ("model", "dtype", "replicas", "use_xla", "num_microbatches"),
    [
        ("mlp", "float32", 1, False, 0),
        ("cnn", "bfloat16", 1, False, 0),
        (NORMALIZED, "float16", 1, False, 0),
        ("cnn", "float16", 2, False, 0),
        (NORMALIZED, "float32", 2, False, 0),
        ("mlp", "bfloat16", 2, True, 0),
        (NORMALIZED, "float32", 1, True, 0),
        (NORMALIZED, "float32", 1, False, 4),
        ("mlp", "bfloat16", 2, True, 4),
    ],
)
def test_loops_stay_on_the_gpu(
    model, dtype, replicas, use_xla, num_microbatches, create_strategy, monkeypatch
):
    strategy = create_strategy(replicas)
    with traced_as_on_gpus(monkeypatch):
        loops = list(
            trace(
                strategy,
                model=model,
                dtype=dtype,
                use_xla=use_xla,
                num_microbatches=num_microbatches,
            )
        )
    for loop in loops:
        missing, on_host = gpu_placement.find_host_work(loop)
        assert not missing
        assert [entry for entry in on_host if entry[0] > MAX_HOST_BYTES] == []
    if use_xla and replicas > 1 and not num_microbatches:
        clusters, others = gpu_placement.count_step_operations(loops[0])
        assert clusters == 3 * replicas  # forward and backward pass; update; counting
        assert others <= MAX_STEP_OPERATIONS * replicas


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_deterministic_loops_hold_nothing_that_raises_on_a_gpu(
    create_strategy, label_smoothing
):
    tf.config.experimental.enable_op_determinism()
    try:
        loops = list(
            trace(
                create_strategy(1),
                model=NORMALIZED,
                dtype="float32",
                use_xla=False,
                label_smoothing=label_smoothing,
            )
        )
    finally:
        config.disable_op_determinism()
    for loop in loops:
        kinds = {node.type for node in gpu_placement.list_operations(loop.graph)}
        assert "Conv2DBackpropFilter" in kinds or loop is loops[1]
        assert not kinds & RAISES_WHERE_DETERMINISTIC


def test_xla_is_off_where_it_has_no_deterministic_kernel(create_strategy):
    pooled = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(2, 3),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    arguments = {"model": pooled, "strategy": create_strategy(1), "image_shape": SHAPE}
    assert xla.should_compile("on", **arguments)
    tf.config.experimental.enable_op_determinism()
    try:
        with pytest.raises(InputError, match="deterministic XLA implementation"):
            xla.should_compile("on", **arguments)
    finally:
        config.disable_op_determinism()
