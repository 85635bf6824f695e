import custom_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from array_checks import assert_same_bytes

from mnist_dist.data import ExampleStream, Split
from mnist_dist.device.evaluate_loop import create_evaluate_loop, evaluate_split
from mnist_dist.device.feed import DeviceSplit
from mnist_dist.device.train_loop import create_train_loop
from mnist_dist.device.train_state import TrainState
from mnist_dist.device.update import LOSS_SCALE_PERIOD
from mnist_dist.device.xla import should_compile
from mnist_dist.errors import InputError
from mnist_dist.modeling.networks import create_model
from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

SHAPE, CLASSES, BATCH = (12, 12, 1), 5, 24
NO_REQUESTS = tf.zeros([2])


@pytest.fixture(autouse=True)
def _fresh_layer_names():
    keras.utils.clear_session()


def create_user_model(*, image_shape, num_classes):
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.SpatialDropout2D(0.2),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, kernel_regularizer="l2"),
        ]
    )


def create_synchronized_model(*, image_shape, num_classes):
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="norm", synchronized=True),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, name="head"),
        ]
    )


def create_counting_model(*, image_shape, num_classes):
    class Counter(keras.layers.Layer):
        def build(self, shape):
            self.total = self.add_weight(
                name="total",
                shape=(),
                dtype="int64",
                initializer="zeros",
                trainable=False,
            )

        def call(self, x, training=False):
            if training:
                self.total.assign(self.total + 1)
            return x

    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            Counter(name="count"),
            keras.layers.Dense(num_classes, name="head"),
        ]
    )


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    return Split(
        "train",
        rng.integers(0, 256, (200, *SHAPE), np.uint8),
        rng.integers(0, CLASSES, 200).astype(np.int32),
    )


def build(strategy, *, model="cnn", optimizer="adam", dtype="float32", **options):
    rule = create_update_rule(optimizer)
    with strategy.scope():
        keras_model = create_model(
            model,
            image_shape=SHAPE,
            num_classes=CLASSES,
            seed=7,
            dropout=options.pop("dropout", 0.0),
            dtype=dtype,
        )
        state = TrainState(
            keras_model,
            slot_names=rule.slots,
            with_ema="ema_decay" in options,
            with_loss_scale=dtype == "float16",
        )
    loop = create_train_loop(
        strategy,
        state,
        update_rule=rule,
        schedule=create_schedule("constant", learning_rate=1e-2, total_steps=100),
        global_batch_size=BATCH,
        seed=7,
        **options,
    )
    return state, loop


def train(strategy, split, state, loop, *, num_steps=6, first=0, is_resident=True):
    data = DeviceSplit(strategy, split, is_resident=is_resident)
    stream = ExampleStream(num_examples=len(split.labels), seed=7)
    indices = stream.indices(first * BATCH, num_steps * BATCH)
    loop(
        *data.feed(indices.reshape(num_steps, BATCH)),
        tf.constant(num_steps),
        NO_REQUESTS,
    )
    return state.to_arrays()


def assert_same_steps(found, expected, before, *, part=0.02):
    """Arrays have moved alike, but for rounding.

    It may switch a ReLU of one of the 24 examples in a step, which is a small part of
    what the steps move. SGD's steps are as exact as the gradients; Adam's are not where
    those are near zero.
    """
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        moved = np.max(np.abs(array - before[name]))
        np.testing.assert_allclose(
            found[name], array, rtol=0, atol=part * moved, err_msg=name
        )


FULL = {
    "optimizer": "sgd",
    "dropout": 0.3,
    "with_augmentation": True,
    "label_smoothing": 0.1,
    "clip_global_norm": 1.0,
    "ema_decay": 0.9,
}


@pytest.mark.parametrize(
    ("model", "replica_counts"),
    [("mlp", [2]), ("cnn", [2]), ("custom_models:create_dropping", [4])],
)
def test_replicas_follow_one_trajectory_and_stay_bit_equal(
    model, replica_counts, create_strategy, split
):
    one = create_strategy(1)
    state, loop = build(one, model=model, **FULL)
    before = state.to_arrays()
    expected = train(one, split, state, loop)
    for replicas in replica_counts:
        strategy = create_strategy(replicas)
        state, loop = build(strategy, model=model, **FULL)
        found = train(strategy, split, state, loop)
        assert_same_steps(found, expected, before)
        for variable in state.parameters + state.ema:
            copies = [v.numpy() for v in strategy.experimental_local_results(variable)]
            for copy in copies[1:]:
                np.testing.assert_array_equal(copy, copies[0])


def train_with_keras(split, model, optimizer, loss, *, num_steps):
    """The same steps as `train`, by Keras; returns the losses, penalties included."""
    oracle = create_model(model, image_shape=SHAPE, num_classes=CLASSES, seed=7)
    oracle.compile(optimizer, loss)
    order = ExampleStream(num_examples=200, seed=7).indices(0, num_steps * BATCH)
    losses = []
    for i in order.reshape(num_steps, BATCH):
        oracle.reset_metrics()  # else some versions of Keras give the mean so far
        images = split.images[i] / np.float32(255)
        losses.append(oracle.train_on_batch(images, split.labels[i]))
    return oracle, losses


def assert_same_weights(found, oracle, before):
    weights = {
        f"model/{v.path.removeprefix(f'{oracle.name}/')}": v.numpy()
        for v in oracle.variables
    }
    assert_same_steps({name: found[name] for name in weights}, weights, before)


def test_training_equals_keras_on_one_device(create_strategy, split):
    strategy = create_strategy(1)
    state, loop = build(strategy, model="mlp", optimizer="sgd")
    before = state.to_arrays()
    found = train(strategy, split, state, loop, num_steps=10)
    oracle, losses = train_with_keras(
        split,
        "mlp",
        keras.optimizers.SGD(1e-2, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        num_steps=10,
    )
    assert_same_weights(found, oracle, before)
    np.testing.assert_allclose(
        found["sums/loss"] / found["sums/examples"], np.mean(losses), rtol=1e-5
    )


def test_smoothed_labels_are_those_of_keras(create_strategy, split):
    one = create_strategy(1)
    state, loop = build(one, model="mlp", optimizer="sgd", label_smoothing=0.1)
    before = state.to_arrays()
    found = train(one, split, state, loop)
    smoothed = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1
    )
    oracle, losses = train_with_keras(
        split,
        "mlp",
        keras.optimizers.SGD(1e-2, momentum=0.9),
        lambda labels, logits: smoothed(
            tf.one_hot(tf.cast(labels, tf.int32), CLASSES), logits
        ),
        num_steps=6,
    )
    assert_same_weights(found, oracle, before)
    np.testing.assert_allclose(
        found["sums/loss"] / found["sums/examples"], np.mean(losses), rtol=1e-5
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_gradients_are_clipped_together_as_by_keras(replicas, create_strategy, split):
    limit = 0.05
    strategy = create_strategy(replicas)
    options = {"model": "mlp", "optimizer": "sgd"}
    free = train(strategy, split, *build(strategy, **options))
    state, loop = build(strategy, clip_global_norm=limit, **options)
    before = state.to_arrays()
    found = train(strategy, split, state, loop)
    oracle, _ = train_with_keras(
        split,
        "mlp",
        keras.optimizers.SGD(1e-2, momentum=0.9, global_clipnorm=limit),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        num_steps=6,
    )
    assert_same_weights(found, oracle, before)
    name = "model/dense_layer_2/kernel"
    assert np.max(np.abs(found[name] - free[name])) > 1e-3


def test_average_of_the_weights_is_short_at_first(create_strategy, split):
    one = create_strategy(1)
    state, loop = build(one, model="mlp", ema_decay=0.2)
    before = state.to_arrays()
    names = [n.removeprefix("model/") for n in before if n.startswith("model/")]
    expected = {name: before[f"model/{name}"] for name in names}
    for step in range(3):
        found = train(one, split, state, loop, num_steps=1, first=step)
        decay = min(0.2, (1 + step) / (10 + step))  # 1/10, 2/11, 0.2
        for name in names:
            new = (1 - decay) * found[f"model/{name}"]
            expected[name] = decay * expected[name] + new
            np.testing.assert_allclose(
                found[f"ema/{name}"], expected[name], rtol=1e-5, atol=1e-7
            )


def test_loss_scale_doubles_after_its_period_and_halves_at_once(create_strategy, split):
    one = create_strategy(1)
    state, loop = build(one, model="mlp", dtype="float16")
    state.loss_scale.assign([8.0, LOSS_SCALE_PERIOD - 2])
    for step, expected in enumerate([[8.0, LOSS_SCALE_PERIOD - 1], [16.0, 0.0]]):
        found = train(one, split, state, loop, num_steps=1, first=step)
        assert found["loss_scale"].tolist() == expected
    state.parameters[0].assign(np.full(state.parameters[0].shape, np.inf))
    for step, expected in enumerate([[8.0, 0.0], [4.0, 0.0]]):
        found = train(one, split, state, loop, num_steps=1, first=step)
        assert found["loss_scale"].tolist() == expected


@pytest.mark.parametrize(
    ("name", "replicas", "use_xla"),
    [
        ("create_penalized", 1, False),
        ("create_penalized", 1, True),
        ("create_penalized_by_means", 2, False),
    ],
)
def test_penalties_of_the_model_count_as_in_keras(
    name, replicas, use_xla, create_strategy, split
):
    name, strategy = f"custom_models:{name}", create_strategy(replicas)
    state, loop = build(strategy, model=name, optimizer="sgd", use_xla=use_xla)
    before = state.to_arrays()
    found = train(strategy, split, state, loop)
    oracle, _ = train_with_keras(
        split,
        name,
        keras.optimizers.SGD(1e-2, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        num_steps=6,
    )
    assert_same_weights(found, oracle, before)


def test_split_run_streamed_run_and_xla_run_are_the_same_run(create_strategy, split):
    one = create_strategy(1)
    state, loop = build(one, model="mlp", **FULL)
    before = state.to_arrays()
    expected = train(one, split, state, loop)

    state, loop = build(one, model="mlp", **FULL)
    train(one, split, state, loop, num_steps=2)
    arrays = state.to_arrays()
    state, loop = build(one, model="mlp", **FULL)
    state.from_arrays(arrays)
    found = train(one, split, state, loop, num_steps=4, first=2)
    assert_same_bytes(found, expected)

    found = train(one, split, *build(one, model="mlp", **FULL), is_resident=False)
    assert_same_bytes(found, expected)

    found = train(one, split, *build(one, model="mlp", use_xla=True, **FULL))
    assert_same_steps(found, expected, before)


def test_batch_norm_statistics_are_averaged_over_replicas(create_strategy, split):
    name = f"{__name__}:create_user_model"
    two = create_strategy(2)
    state, loop = build(two, model=name)
    kernel, bias = (v.numpy() for v in state.parameters[:2])
    found = train(two, split, state, loop, num_steps=1)
    order = ExampleStream(num_examples=200, seed=7).indices(0, BATCH)
    images = split.images[order] / np.float32(255)
    activations = tf.nn.conv2d(images, kernel, 1, "VALID").numpy() + bias
    halves = np.split(activations, 2)
    variance = np.mean([h.var(axis=(0, 1, 2)) for h in halves], axis=0)
    np.testing.assert_allclose(
        found["model/norm/moving_mean"],
        0.01 * activations.mean(axis=(0, 1, 2)),
        rtol=1e-4,
        atol=1e-7,
    )
    np.testing.assert_allclose(
        found["model/norm/moving_variance"], 0.99 + 0.01 * variance, rtol=1e-5
    )


def test_synchronized_batch_norm_is_that_of_the_whole_batch(create_strategy, split):
    name = f"{__name__}:create_synchronized_model"
    one, two = create_strategy(1), create_strategy(2)
    state, loop = build(one, model=name, optimizer="sgd")
    before = state.to_arrays()
    expected = train(one, split, state, loop)
    found = train(two, split, *build(two, model=name, optimizer="sgd"))
    assert_same_steps(found, expected, before)


@pytest.mark.parametrize("replicas", [1, 2])
def test_counters_of_layers_are_not_averaged(replicas, create_strategy, split):
    strategy = create_strategy(replicas)
    state, loop = build(
        strategy, model=f"{__name__}:create_counting_model", ema_decay=0.9
    )
    found = train(strategy, split, state, loop)
    for kind in ("model", "ema"):
        assert found[f"{kind}/count/total"].dtype == np.int64
        assert found[f"{kind}/count/total"] == 6


@pytest.mark.parametrize("replicas", [1, 2])
def test_bfloat16_computes_in_it_and_keeps_float32(replicas, create_strategy, split):
    strategy = create_strategy(replicas)
    state, loop = build(strategy, optimizer="sgd")
    before = state.to_arrays()
    expected = train(strategy, split, state, loop)
    state, loop = build(strategy, optimizer="sgd", dtype="bfloat16")
    found = train(strategy, split, state, loop)
    assert {v.dtype for v in state.parameters} == {tf.float32}
    assert state.model.get_layer("conv_layer_1").compute_dtype == "bfloat16"
    assert_same_steps(found, expected, before, part=0.2)  # of 8 bits
    # In float32 a replay would be equal to the last bit.
    assert any(np.any(found[name] != expected[name]) for name in expected)


def test_dropout_masks_differ_between_examples_and_replicas(create_strategy):
    custom_models.SPIED.clear()
    two = create_strategy(2)
    state, loop = build(two, model="custom_models:create_spied", dropout=0.5)
    white = Split(
        "train", np.full((200, *SHAPE), 255, np.uint8), np.zeros(200, np.int32)
    )
    train(two, white, state, loop, num_steps=1)
    masks = np.concatenate(custom_models.SPIED)
    assert masks.shape == (BATCH, 144)
    assert len(np.unique(masks, axis=0)) == BATCH
    assert set(np.unique(masks)) == {0.0, 2.0}
    assert abs(np.mean(masks) - 1.0) < 0.1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_step_that_is_not_finite_on_one_replica_is_skipped_on_all(
    dtype, create_strategy, split
):
    two = create_strategy(2)
    state, loop = build(two, model="mlp", dtype=dtype, ema_decay=0.9)
    before = train(two, split, state, loop, num_steps=1)
    poisoned = before["model/dense_layer_2/kernel"].copy()
    poisoned[0, 0] = np.inf
    two.experimental_local_results(state.parameters[2])[1].assign(poisoned)
    train(two, split, state, loop, num_steps=1, first=1)
    after = state.to_arrays()
    assert after["step"] == 2
    assert after["nonfinite_streak"] == 1
    assert after["sums/nonfinite_steps"] == 1
    assert after["sums/examples"] == BATCH
    for name in before:
        if name.startswith(("model/", "optimizer/", "ema/")):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    if dtype == "float16":
        scales = two.experimental_local_results(state.loss_scale)
        assert [list(s.numpy()) for s in scales] == [[2.0**14, 0.0]] * 2


def choose_xla(choice, name, strategy):
    with strategy.scope():
        model = create_model(name, image_shape=SHAPE, num_classes=CLASSES, seed=7)
    return should_compile(choice, model, strategy, image_shape=SHAPE)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    ("name", "expected"),
    [("mlp", True), ("cnn", False), ("custom_models:Subclassed", True)],
)
def test_xla_is_chosen_where_it_pays(name, expected, replicas, create_strategy):
    strategy = create_strategy(replicas)
    assert choose_xla("auto", name, strategy) is expected
    assert choose_xla("on", name, strategy)
    assert not choose_xla("off", name, strategy)


@pytest.mark.parametrize(
    ("name", "replicas", "reason"),
    [
        ("custom_models:create_zooming", 1, "it has no ImageProjectiveTransformV3"),
        ("custom_models:create_zooming", 2, "it has no ImageProjectiveTransformV3"),
        ("custom_models:create_penalized", 2, "a layer synchronizes replicas"),
    ],
)
def test_xla_is_off_where_it_cannot_compile_the_model(
    name, replicas, reason, create_strategy, split, caplog
):
    strategy = create_strategy(replicas)
    use_xla = choose_xla("auto", name, strategy)
    assert not use_xla
    assert reason in caplog.text
    train(strategy, split, *build(strategy, model=name, use_xla=use_xla))
    with pytest.raises(InputError, match=f"--enable_xla: found on, .*{reason}"):
        choose_xla("on", name, strategy)


def test_global_batch_that_replicas_cannot_share_is_refused(create_strategy):
    three = create_strategy(3)
    with three.scope():
        state = TrainState(
            create_model("mlp", image_shape=SHAPE, num_classes=CLASSES, seed=1),
            slot_names=(),
        )
    with pytest.raises(InputError, match=r"--global_batch_size: found 10.*3 replicas"):
        create_train_loop(
            three,
            state,
            update_rule=create_update_rule("adam"),
            schedule=create_schedule("constant", learning_rate=1, total_steps=1),
            global_batch_size=10,
            seed=1,
        )


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("is_resident", [True, False])
def test_every_test_image_is_evaluated_once(
    replicas, is_resident, create_strategy, mnist
):
    strategy = create_strategy(replicas)
    with strategy.scope():
        model = create_model("mlp", image_shape=(28, 28, 1), num_classes=10, seed=3)
        state = TrainState(model, slot_names=())
    result = evaluate_split(
        create_evaluate_loop(strategy, state),
        DeviceSplit(strategy, mnist.test, is_resident=is_resident),
        num_replicas=replicas,
        per_replica_batch=37,
    )
    weights = [v.numpy() for v in state.parameters]
    hidden = np.maximum(
        mnist.test.images.reshape(-1, 784) / np.float32(255) @ weights[0] + weights[1],
        0,
    )
    logits = (hidden @ weights[2] + weights[3]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert result.num_examples == 10_000
    num_correct = int(np.sum(logits.argmax(axis=1) == mnist.test.labels))
    assert result.accuracy == num_correct / 10_000
    np.testing.assert_allclose(
        result.loss,
        -log_probability[np.arange(10_000), mnist.test.labels].mean(),
        rtol=1e-5,
    )
