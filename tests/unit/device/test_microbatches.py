"""With microbatches a run is the same to the last bit on any number of replicas."""

import functools
import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnist_dist.data import ExampleStream, Split
from mnist_dist.device.evaluate_loop import create_evaluate_loop, evaluate_split
from mnist_dist.device.feed import DeviceSplit
from mnist_dist.device.microbatches import check_batch, check_nothing_synchronizes
from mnist_dist.device.summation_tree import count_additions, whole_subtrees
from mnist_dist.device.train_loop import create_train_loop
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.modeling.networks import create_model
from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

SHAPE, CLASSES, BATCH, STEPS = (12, 12, 1), 5, 24, 20


def create_drawing(*, image_shape, num_classes, dropout):
    """What depends on the batch: statistics, masks, other random draws, penalties."""
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Conv2D(4, 3, strides=2, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.SpatialDropout2D(dropout),
            keras.layers.Flatten(),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(
                num_classes,
                kernel_regularizer="l2",
                activity_regularizer="l2",
                dtype="float32",
                name="head",
            ),
        ]
    )


DRAWING = f"{__name__}:create_drawing"


@pytest.fixture(autouse=True)
def _fresh_layer_names():
    keras.utils.clear_session()


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    return Split(
        "train",
        rng.integers(0, 256, (203, *SHAPE), np.uint8),
        rng.integers(0, CLASSES, 203).astype(np.int32),
    )


def build(strategy, *, model, dtype, use_xla, num_microbatches):
    rule = create_update_rule("adam")
    with strategy.scope():
        network = create_model(
            model,
            image_shape=SHAPE,
            num_classes=CLASSES,
            seed=7,
            dropout=0.3,
            dtype=dtype,
        )
        state = TrainState(
            network,
            slot_names=rule.slots,
            with_ema=True,
            with_loss_scale=dtype == "float16",
        )
    return state, create_train_loop(
        strategy,
        state,
        update_rule=rule,
        schedule=create_schedule("cosine", learning_rate=1e-2, total_steps=STEPS),
        global_batch_size=BATCH,
        seed=7,
        with_augmentation=True,
        label_smoothing=0.1,
        clip_global_norm=1.0,
        ema_decay=0.9,
        use_xla=use_xla,
        num_microbatches=num_microbatches,
    )


def run(strategy, split, *, use_xla, **options):
    """Trains and evaluates; returns the digest of all variables, and the evaluation."""
    state, loop = build(strategy, use_xla=use_xla, **options)
    data = DeviceSplit(strategy, split, is_resident=True)
    order = ExampleStream(num_examples=len(split.labels), seed=7)
    indices = order.indices(0, STEPS * BATCH).reshape(STEPS, BATCH)
    agreed = loop(*data.feed(indices), tf.constant(STEPS), tf.constant([0.0, 3.0]))
    # On Mirrored each replica has the control values of its one worker; the first's count.
    assert agreed.numpy().tolist() == [0.0, 3.0]
    evaluate_loop = create_evaluate_loop(
        strategy, state, use_xla=use_xla, on_any_replicas=True
    )
    evaluation = evaluate_split(
        evaluate_loop,
        data,
        num_replicas=strategy.num_replicas_in_sync,
        per_replica_batch=17,
    )
    digest = hashlib.sha256()
    arrays = state.to_arrays()
    assert all(np.all(np.isfinite(array)) for array in arrays.values())
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest(), evaluation


@pytest.mark.parametrize(
    ("model", "dtype", "use_xla", "num_microbatches", "replicas"),
    [
        ("mlp", "float16", True, 4, (2,)),
        ("cnn", "bfloat16", False, 4, (2,)),
        # Shares of three and of two have no subtree of the six in common.
        (DRAWING, "float32", False, 6, (2, 3)),
    ],
)
def test_any_number_of_replicas_gives_the_same_bits(
    model, dtype, use_xla, num_microbatches, replicas, create_strategy, split
):
    options = {
        "model": model,
        "dtype": dtype,
        "use_xla": use_xla,
        "num_microbatches": num_microbatches,
    }
    expected = run(create_strategy(1), split, **options)
    for number in replicas:
        assert run(create_strategy(number), split, **options) == expected


@pytest.mark.parametrize("num_microbatches", [1, 2, 6, 7, 8, 12])
def test_shares_of_any_size_are_whole_subtrees_of_one_tree(num_microbatches):
    root = (0, num_microbatches)
    for share in range(1, num_microbatches + 1):
        for first in range(0, num_microbatches - share + 1, share):
            subtrees = whole_subtrees(root, (first, first + share))
            leaves = [i for a, b in subtrees for i in range(a, b)]
            assert leaves == list(range(first, first + share))
            # Of n terms n - 1 are added, each addition making one of two.
            assert all(sum(count_additions(t)) == t[1] - t[0] - 1 for t in subtrees)


def test_microbatches_that_do_not_fit_are_refused_with_those_that_do():
    check = functools.partial(check_batch, global_batch_size=24, num_replicas=2)
    check(num_microbatches=0)
    check(num_microbatches=6)
    for number in (3, 5, 48):
        with pytest.raises(InputError, match=r"24 on 2 .*one of 2, 4, 6, 8, 12, 24$"):
            check(num_microbatches=number)


def test_layer_that_synchronizes_replicas_is_refused():
    layer = keras.layers.BatchNormalization(synchronized=True, name="norm")
    model = keras.Sequential([keras.Input(SHAPE), layer])
    with pytest.raises(InputError, match="the layer 'norm' synchronizes replicas"):
        check_nothing_synchronizes(model)
