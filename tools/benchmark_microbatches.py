"""Times a step with `--num_microbatches` against one without, in turns.

  python tools/benchmark_microbatches.py [--rounds=5] [--models=cnn]

It trains `mlp` and `cnn` (Adam, global batch 128, with augmentation) on one CPU device and
on two logical ones. It prints images/s (median of the rounds) and how many times as long a
step takes as without microbatches on the same devices (median and range).
"""

import statistics
import sys
import time
from collections.abc import Callable

from absl import app, flags

from mnist_dist.cli import program

with program.quiet_imports():
    import numpy as np
    import tensorflow as tf

    from mnist_dist.data import load_dataset
    from mnist_dist.device.devices import split_cpu
    from mnist_dist.device.strategy import create_strategy
    from mnist_dist.device.train_loop import create_train_loop
    from mnist_dist.device.train_state import TrainState
    from mnist_dist.device.xla import should_compile
    from mnist_dist.modeling.networks import create_model
    from mnist_dist.modeling.optimizers import create_schedule, create_update_rule

ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
MODELS = flags.DEFINE_list("models", ["mlp", "cnn"], "Which to time.")
BATCH = 128
STEPS = {"mlp": 200, "cnn": 10}  # of a turn
# (replicas, microbatches); the first of each number of replicas is what the others are
# compared with.
SIDES = [(1, 0), (1, 1), (1, 2), (1, 4), (1, 8), (2, 0), (2, 2), (2, 4), (2, 8)]


def create_turn(model: str, num_replicas: int, num_microbatches: int) -> Callable:
    """Returns a function that trains `STEPS` and gives its seconds."""
    strategy = create_strategy(
        "mirrored" if num_replicas > 1 else "one_device",
        num_gpus=0,
        logical_cpus=num_replicas,
    )
    rule = create_update_rule("adam")
    dataset = load_dataset()
    with strategy.scope():
        network = create_model(model, image_shape=(28, 28, 1), num_classes=10, seed=1)
        state = TrainState(network, slot_names=rule.slots)
    loop = create_train_loop(
        strategy,
        state,
        update_rule=rule,
        schedule=create_schedule("constant", learning_rate=1e-3, total_steps=1),
        global_batch_size=BATCH,
        seed=1,
        with_augmentation=True,
        use_xla=should_compile("auto", network, strategy, image_shape=(28, 28, 1)),
        num_microbatches=num_microbatches,
    )
    steps = STEPS[model]
    images = tf.constant(dataset.train.images)
    labels = tf.constant(dataset.train.labels, tf.int64)
    indices = tf.constant(np.arange(steps * BATCH).reshape(steps, BATCH))

    def turn() -> float:
        began = time.perf_counter()
        loop(images, labels, indices, tf.constant(steps), tf.zeros([2]))
        state.step.numpy()  # waits for the device
        return time.perf_counter() - began

    return turn


def compare(model: str, *, rounds: int) -> None:
    """Times all sides of one model."""
    turns = {side: create_turn(model, *side) for side in SIDES}
    for turn in turns.values():
        turn()  # compiles
    seconds: dict[tuple[int, int], list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, turn in turns.items():
            seconds[side].append(turn())
    print(f"{model}, batch {BATCH}, {rounds} rounds of {STEPS[model]} steps")
    for (replicas, number), values in seconds.items():
        pairs = zip(values, seconds[replicas, 0], strict=True)
        ratios = [a / b for a, b in pairs]
        rate = STEPS[model] * BATCH / statistics.median(values)
        print(
            f"  {replicas} replicas, {number} microbatches {rate:>9,.0f} images/s   "
            f"x{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            flush=True,
        )


def main(argv: list[str]) -> int:
    """Compares both models."""
    del argv
    tf.get_logger().setLevel(
        "ERROR"
    )  # it takes many loops for one that is traced often
    split_cpu(2)
    for model in MODELS.value:
        compare(model, rounds=ROUNDS.value)
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
