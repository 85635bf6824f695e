"""Times training with a checkpoint every epoch against the same without any.

  python tools/benchmark_saves.py [--rounds=15]

For `cnn` (batch 128) and `mlp` (batch 32) as `train` and the recipe `seed_mlp` run them:
one run trains an epoch with and one without in turn, so that a slow moment of the
machine hits both. With: a save begins at the start of the epoch, and its files are
written meanwhile. Prints what it costs of the epoch (median and quartiles of the
rounds' ratios; the mlp has eight times the rounds), how long the training loop waits
for it, and the processor time that the process takes more, which other programs on the
machine disturb the least.
"""

import contextlib
import statistics
import tempfile
import time
from typing import Any

from absl import app, flags

from mnist_dist.cli import program

with program.quiet_imports():
    import tensorflow as tf

    from mnist_dist.cluster.membership import find_cluster
    from mnist_dist.cluster.stop_request import StopRequest
    from mnist_dist.data import Dataset, load_dataset
    from mnist_dist.device.steps import (
        create_evaluate_loop,
        create_train_loop,
    )
    from mnist_dist.device.train_state import TrainState
    from mnist_dist.device.xla import should_compile
    from mnist_dist.modeling.networks import create_model
    from mnist_dist.modeling.optimizers import create_schedule, create_update_rule
    from mnist_dist.run.checkpoints import list_checkpoints
    from mnist_dist.run.directory import checkpoint_dir
    from mnist_dist.run.plan import RunPlan
    from mnist_dist.training.host_loop import TrainingRun

ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each.", lower_bound=2)
SEED = 1


def create_run(
    name: str,
    dataset: Dataset,
    *,
    batch: int,
    with_augmentation: bool,
    ema_decay: float,
    model_dir: str,
) -> TrainingRun:
    """Builds a run without end, as `train` does."""
    strategy = tf.distribute.OneDeviceStrategy("/device:CPU:0")
    rule = create_update_rule("adam")
    with strategy.scope():
        model = create_model(name, image_shape=(28, 28, 1), num_classes=10, seed=SEED)
        state = TrainState(model, slot_names=rule.slots, with_ema=ema_decay > 0)
    schedule = create_schedule("constant", learning_rate=1e-3, total_steps=1)
    use_xla = should_compile("auto", model, strategy, image_shape=(28, 28, 1))
    epoch = round(len(dataset.train.labels) / batch)
    run = TrainingRun(
        model_dir=model_dir,
        plan=RunPlan(
            total_steps=1 << 40,
            steps_per_epoch=epoch,
            eval_interval=epoch,
            checkpoint_interval=epoch,
            summary_interval=epoch,
        ),
        cluster=find_cluster({}),
        stop=StopRequest(),
        dataset=dataset,
        strategy=strategy,
        state=state,
        train_loop=create_train_loop(
            strategy,
            state,
            update_rule=rule,
            schedule=schedule,
            global_batch_size=batch,
            seed=SEED,
            with_augmentation=with_augmentation,
            ema_decay=ema_decay,
            use_xla=use_xla,
        ),
        evaluate_loop=create_evaluate_loop(strategy, state, use_xla=use_xla),
        schedule=schedule,
        global_batch_size=batch,
        seed=SEED,
        show_progress=False,
    )
    run.start(None, texts={})
    return run


def train_epoch(run: TrainingRun) -> None:
    """Trains to the end of the epoch."""
    run.train_until_next_event()
    while not run.is_due(run.plan.checkpoint_interval):
        run.train_until_next_event()


def wait_for_checkpoint(run: TrainingRun, step: int) -> None:
    """Returns when the files of this step are on disk."""
    while step not in list_checkpoints(checkpoint_dir(run.model_dir)):
        time.sleep(0.01)


def compare(name: str, *, rounds: int, **options: Any) -> None:
    """Times one model and prints what its saves cost."""
    costs, waits, processor = [], [], []
    with tempfile.TemporaryDirectory() as model_dir:
        run = create_run(name, load_dataset(), model_dir=model_dir, **options)
        with contextlib.closing(run):
            for _ in range(5):  # compiles, and finds the length of a call
                train_epoch(run)
            for number in range(rounds):
                seconds, used = {}, {}
                for saves in (False, True) if number % 2 else (True, False):
                    step = run.step
                    used_before, began = time.process_time(), time.perf_counter()
                    if saves:
                        run.save()
                        waits.append(time.perf_counter() - began)
                    train_epoch(run)
                    seconds[saves] = time.perf_counter() - began
                    if saves:
                        wait_for_checkpoint(run, step)
                    used[saves] = time.process_time() - used_before
                costs.append(seconds[True] / seconds[False] - 1)
                processor.append(used[True] / used[False] - 1)
    low, middle, high = statistics.quantiles(costs, n=4)
    print(
        f"{name}: a save an epoch of {seconds[False]:.2f} s costs {middle:+.1%} of it "
        f"({low:+.1%} to {high:+.1%}); the loop waits "
        f"{statistics.median(waits) * 1e3:.1f} ms; processors work "
        f"{statistics.median(processor):+.1%}",
        flush=True,
    )


def main(argv: list[str]) -> None:
    """Compares both models."""
    del argv
    rounds = ROUNDS.value
    compare("mlp", rounds=8 * rounds, batch=32, with_augmentation=False, ema_decay=0.0)
    compare("cnn", rounds=rounds, batch=128, with_augmentation=True, ema_decay=0.995)


if __name__ == "__main__":
    app.run(main)
