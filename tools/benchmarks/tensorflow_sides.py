"""The sides that TensorFlow computes: ours, plain Python loops, Keras `fit`."""

import functools

import keras
import numpy as np
import tensorflow as tf

from benchmarks.side import CreateSide, Rank, Side, SideError
from benchmarks.work import (
    EPSILON,
    IMAGE_SHAPE,
    LEARNING_RATE,
    NUM_CLASSES,
    SEED,
    Case,
    first_weights,
    training_batches,
)
from mnist_dist.cluster.membership import Cluster
from mnist_dist.device.strategy import create_strategy
from mnist_dist.device.train_loop import TrainLoop, create_train_loop
from mnist_dist.device.train_state import TrainState
from mnist_dist.device.xla import should_compile
from mnist_dist.modeling.losses import cross_entropy
from mnist_dist.modeling.networks import create_model
from mnist_dist.modeling.optimizers import create_schedule, create_update_rule


def create_sides(rank: Rank, *, num_replicas: int) -> dict[str, CreateSide]:
    """Returns how each side is made in this process.

    Args:
      rank: of this process; not alone, it has one side.
      num_replicas: in this process; with more than one it has one side.
    """
    if not rank.is_alone:
        cluster = Cluster("benchmark", rank.addresses, rank.number)
        return {"mnist_dist": _create_ours(create_strategy(cluster=cluster))}
    if num_replicas > 1:
        strategy = create_strategy("mirrored", logical_cpus=num_replicas)
        return {f"mnist_dist, {num_replicas} replicas": _create_ours(strategy)}
    strategy = create_strategy(
        "one_device", num_gpus=min(len(tf.config.list_physical_devices("GPU")), 1)
    )
    return {
        "mnist_dist": _create_ours(strategy),
        "our step in a Python loop": functools.partial(
            our_step_in_python, strategy=strategy, use_xla=False
        ),
        "our step in a Python loop, XLA": functools.partial(
            our_step_in_python, strategy=strategy, use_xla=True
        ),
        "Keras's parts in a Python loop": keras_parts_in_python,
        "Keras fit": functools.partial(
            keras_fit, strategy=strategy, is_at_its_best=False
        ),
        "Keras fit at its best": functools.partial(
            keras_fit, strategy=strategy, is_at_its_best=True
        ),
    }


def _create_ours(strategy: tf.distribute.Strategy) -> CreateSide:
    return functools.partial(ours, strategy=strategy)


def _create_keras_model(case: Case) -> keras.Model:
    model = create_model(
        case.model,
        image_shape=IMAGE_SHAPE,
        num_classes=NUM_CLASSES,
        seed=SEED,
        dtype=case.dtype,
    )
    model.set_weights(first_weights(case.model))
    return model


def _pays_to_compile(case: Case, strategy: tf.distribute.Strategy) -> bool:
    """Whether XLA would compile this model in `train`."""
    model = _create_keras_model(case)
    return should_compile("auto", model, strategy, image_shape=IMAGE_SHAPE)


def _predict_with(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model(images, training=False))


def _create_our_loop(
    case: Case, strategy: tf.distribute.Strategy, *, use_xla: bool
) -> tuple[TrainLoop, TrainState]:
    rule = create_update_rule("adam")
    with strategy.scope():
        model = _create_keras_model(case)
        state = TrainState(model, slot_names=rule.slots)
    loop = create_train_loop(
        strategy,
        state,
        update_rule=rule,
        schedule=create_schedule(
            "constant", learning_rate=LEARNING_RATE, total_steps=1
        ),
        global_batch_size=case.batch,
        seed=SEED,
        use_xla=use_xla,
    )
    return loop, state


def ours(case: Case, *, strategy: tf.distribute.Strategy) -> Side:
    """The package's device loop over resident data, as `train` calls it."""
    loop, state = _create_our_loop(
        case, strategy, use_xla=_pays_to_compile(case, strategy)
    )
    images, labels = map(tf.constant, training_batches(case))
    order = np.arange(case.steps * case.batch, dtype=np.int64)
    indices = tf.constant(order.reshape(case.steps, case.batch))
    num_steps, control = tf.constant(case.steps), tf.zeros([2])

    def train() -> None:
        loop(images, labels, indices, num_steps, control)
        state.step.numpy()  # waits for the device

    return Side(train, functools.partial(_predict_with, state.model))


def our_step_in_python(
    case: Case, *, strategy: tf.distribute.Strategy, use_xla: bool
) -> Side:
    """A Python loop that calls the package's own step with NumPy slices."""
    if use_xla and not _pays_to_compile(case, strategy):
        raise SideError("XLA does not make this model faster here")
    loop, state = _create_our_loop(case, strategy, use_xla=use_xla)
    images, labels = training_batches(case)
    whole_batch = (
        tf.range(case.batch, dtype=tf.int64)[tf.newaxis],
        tf.constant(1),
        tf.zeros([2]),
    )

    def train() -> None:
        for i in range(0, len(labels), case.batch):
            batch = images[i : i + case.batch], labels[i : i + case.batch]
            loop(*batch, *whole_batch)
        state.step.numpy()

    return Side(train, functools.partial(_predict_with, state.model))


def keras_parts_in_python(case: Case) -> Side:
    """A Python loop over a leaner step of Keras's model and optimizer.

    It adds no sums up, and checks no gradient.
    """
    model = _create_keras_model(case)
    optimizer = keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON)
    optimizer.build(model.trainable_variables)
    images, labels = training_batches(case)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(tf.cast(x, tf.float32) / 255.0, training=True)
            loss = tf.reduce_mean(cross_entropy(logits, y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    def train() -> None:
        for i in range(0, len(labels), case.batch):
            loss = step(images[i : i + case.batch], labels[i : i + case.batch])
        loss.numpy()

    return Side(train, functools.partial(_predict_with, model))


def keras_fit(
    case: Case, *, strategy: tf.distribute.Strategy, is_at_its_best: bool
) -> Side:
    """Keras `fit` over arrays: as it comes, or with its own options for speed."""
    model = _create_keras_model(case)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=min(50, case.steps) if is_at_its_best else 1,
        jit_compile=is_at_its_best and _pays_to_compile(case, strategy),
    )
    images, labels = training_batches(case)
    floats = images.astype(np.float32) / 255.0

    def train() -> None:
        model.fit(floats, labels, batch_size=case.batch, shuffle=False, verbose=0)

    return Side(train, functools.partial(_predict_with, model))
