"""Times the same training side by side: our loop, plain Python loops, Keras `fit`.

  python tools/benchmark.py [--rounds=5]

It trains `mlp` (batch 32) and `cnn` (batch 128) with Adam 1e-3, without augmentation. First
all sides must reach the same loss from the same weights and batches. Then they take turns,
so that other load on the machine meets all of them. It prints images/s after compilation
(median of the rounds) and the ratio of our speed to each peer's (median and range). All
sides run where `train` would: on the first GPU, or on the CPU where there is none.

The peers: a Python loop over our own step, plain and compiled by XLA; a Python loop over a
leaner step of Keras's model and optimizer, which adds no sums up and checks no gradient;
and `fit`, by default and with its own options for speed.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable

from absl import app, flags

from mnist_dist.cli import program

with program.quiet_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from mnist_dist.data import ExampleStream, load_dataset
    from mnist_dist.device.strategy import create_strategy
    from mnist_dist.device.train_loop import create_train_loop
    from mnist_dist.device.train_state import TrainState
    from mnist_dist.device.xla import should_compile
    from mnist_dist.modeling.losses import cross_entropy
    from mnist_dist.modeling.networks import create_model
    from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
LEARNING_RATE = 1e-3
SEED = 1

# A peer runs its batches once and returns the model that it trained.
Peer = Callable[[], keras.Model]


def create_one_device_strategy() -> tf.distribute.Strategy:
    """Builds the strategy of `train` on one device: the first GPU, else the CPU."""
    num_gpus = min(len(tf.config.list_physical_devices("GPU")), 1)
    return create_strategy("one_device", num_gpus=num_gpus)


def describe_device() -> str:
    """Returns the name of the device on which all sides run."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return f"CPU, {os.cpu_count()} processors"
    details = tf.config.experimental.get_device_details(gpus[0])
    return f"GPU, {details.get('device_name', gpus[0].name)}"


def create_keras_model(name: str) -> keras.Model:
    """Builds the model with the weights that every peer starts from."""
    return create_model(name, image_shape=(28, 28, 1), num_classes=10, seed=SEED)


class OurTraining:
    """The package's device loop, and the model that it trains."""

    def __init__(self, name: str, *, batch: int, use_xla: bool) -> None:
        strategy = create_one_device_strategy()
        with strategy.scope():
            self.model = create_keras_model(name)
            rule = create_update_rule("adam")
            self.state = TrainState(self.model, slot_names=rule.slots)
        self.loop = create_train_loop(
            strategy,
            self.state,
            update_rule=rule,
            schedule=create_schedule(
                "constant", learning_rate=LEARNING_RATE, total_steps=1
            ),
            global_batch_size=batch,
            seed=SEED,
            use_xla=use_xla,
        )


def ours(
    name: str, images: np.ndarray, labels: np.ndarray, batch: int, *, use_xla: bool
) -> Peer:
    """The package's device loop on resident data."""
    training = OurTraining(name, batch=batch, use_xla=use_xla)
    steps = len(labels) // batch
    data = tf.constant(images), tf.constant(labels, tf.int64)
    indices = np.arange(steps * batch, dtype=np.int64).reshape(steps, batch)

    def run() -> keras.Model:
        training.loop(*data, tf.constant(indices), tf.constant(steps), tf.zeros([2]))
        training.state.step.numpy()  # waits for the device
        return training.model

    return run


def our_step_called(
    name: str, images: np.ndarray, labels: np.ndarray, batch: int, *, use_xla: bool
) -> Peer:
    """A Python loop over the package's own step, fed with NumPy slices."""
    training = OurTraining(name, batch=batch, use_xla=use_xla)
    labels = labels.astype(np.int64)
    all_of_it = (
        tf.range(batch, dtype=tf.int64)[tf.newaxis],
        tf.constant(1),
        tf.zeros([2]),
    )

    def run() -> keras.Model:
        for i in range(0, len(labels), batch):
            training.loop(images[i : i + batch], labels[i : i + batch], *all_of_it)
        training.state.step.numpy()
        return training.model

    return run


def plain_loop(name: str, images: np.ndarray, labels: np.ndarray, batch: int) -> Peer:
    """A Python loop over a step of Keras's model and optimizer, fed with NumPy slices."""
    model = create_keras_model(name)
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(tf.cast(x, tf.float32) / 255.0, training=True)
            loss = tf.reduce_mean(cross_entropy(logits, y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    def run() -> keras.Model:
        for i in range(0, len(labels), batch):
            loss = step(images[i : i + batch], labels[i : i + batch])
        loss.numpy()
        return model

    return run


def keras_fit(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    batch: int,
    *,
    steps_per_execution: int,
    use_xla: bool,
) -> Peer:
    """Keras `fit`."""
    model = create_keras_model(name)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
        jit_compile=use_xla,
    )
    floats = images.astype(np.float32) / 255.0

    def run() -> keras.Model:
        model.fit(floats, labels, batch_size=batch, shuffle=False, verbose=0)
        return model

    return run


def compare(name: str, *, batch: int, steps: int, rounds: int) -> bool:
    """Checks and times one model; returns whether all computed the same."""
    dataset = load_dataset()
    stream = ExampleStream(num_examples=len(dataset.train.labels), seed=SEED)
    order = stream.indices(0, steps * batch)
    images, labels = dataset.train.images[order], dataset.train.labels[order]
    arguments = (name, images, labels, batch)
    use_xla = should_compile(
        "auto",
        create_keras_model(name),
        create_one_device_strategy(),
        image_shape=dataset.image_shape,
    )
    with_xla = ", XLA" if use_xla else ""
    peers = {
        "mnist_dist": ours(*arguments, use_xla=use_xla),
        "our step, called from Python": our_step_called(*arguments, use_xla=False),
        "Keras's parts, called from Python": plain_loop(*arguments),
        "Keras fit": keras_fit(*arguments, steps_per_execution=1, use_xla=False),
        f"Keras fit, 50 steps an execution{with_xla}": keras_fit(
            *arguments, steps_per_execution=50, use_xla=use_xla
        ),
    }
    if use_xla:
        peers["our step, called from Python, XLA"] = our_step_called(
            *arguments, use_xla=True
        )
    test = dataset.test.images[:1000].astype(np.float32) / 255.0
    losses = {}
    for peer, run in peers.items():  # this first turn also compiles
        logits = run()(test, training=False)
        losses[peer] = float(
            tf.reduce_mean(cross_entropy(logits, dataset.test.labels[:1000]))
        )
    expected = losses["mnist_dist"]
    is_same = all(abs(loss - expected) < 0.02 * expected for loss in losses.values())
    found = ", ".join(f"{loss:.4f}" for loss in losses.values())
    print(
        f"\n{name}, batch {batch}, {steps} steps on {describe_device()}: losses {found}"
    )
    if not is_same:
        print("  these are not the same computation; nothing was timed")
        return False

    rates: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(rounds):
        for peer, run in peers.items():
            began = time.perf_counter()
            run()
            rates[peer].append(steps * batch / (time.perf_counter() - began))
    for peer, values in rates.items():
        ratios = [a / b for a, b in zip(rates["mnist_dist"], values, strict=True)]
        print(
            f"  {peer:<46} {statistics.median(values):>9,.0f} images/s   "
            f"ours x{statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f})"
        )
    return True


def main(argv: list[str]) -> int:
    """Compares both models."""
    del argv
    mlp = compare("mlp", batch=32, steps=1800, rounds=ROUNDS.value)
    cnn = compare("cnn", batch=128, steps=100, rounds=ROUNDS.value)
    return 0 if mlp and cnn else 1


if __name__ == "__main__":
    sys.exit(app.run(main))
