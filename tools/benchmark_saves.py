"""Times training with a checkpoint every epoch against the same without any.

  python tools/benchmark_saves.py [--rounds=15]

It trains `cnn` (batch 128) as `train` does and `mlp` (batch 32) as the recipe `seed_mlp`
does. An epoch with a checkpoint and one without take turns, so that other load on the
machine meets both. The save begins at the start of the epoch, and its files are written
meanwhile. It prints how much longer the epoch takes (median and quartiles of the ratios;
the mlp has eight times the rounds), how long the training loop waits for the save, and how
much more processor time the process takes, which other load disturbs the least.
"""

import contextlib
import statistics
import tempfile
import time
from typing import Any

from absl import app, flags

from mnist_dist.cli import program

with program.quiet_imports():
    from mnist_dist.cluster.membership import Cluster
    from mnist_dist.data import load_dataset
    from mnist_dist.device.progress_watch import ProgressWatch
    from mnist_dist.device.strategy import create_strategy
    from mnist_dist.run.best import Best
    from mnist_dist.run.checkpoints import list_checkpoints
    from mnist_dist.run.paths import checkpoint_dir
    from mnist_dist.training.host_loop import HostLoop
    from mnist_dist.training.job import create_host_loop, create_job
    from mnist_dist.training.options import TrainingOptions
    from mnist_dist.training.progress import Progress
    from mnist_dist.training.recorder import Recorder
    from mnist_dist.training.restore import restore_run

ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each.", lower_bound=2)


def begin_run(options: TrainingOptions) -> tuple[HostLoop, Recorder]:
    """Begins a run as `train_model` does, and leaves the steps to the caller."""
    dataset = load_dataset()
    plan = options.plan(len(dataset.train.labels))
    cluster = Cluster("one worker")
    job = create_job(
        options,
        plan,
        dataset=dataset,
        strategy=create_strategy("one_device"),
        cluster=cluster,
    )
    start = restore_run(
        model=job.state.model,
        specs={**job.state.specs(), **Best.specs()},
        stopping=plan.stopping,
        settings=options.settings(),
        say=print,
        **options.pick("model_dir restore overwrite override_config init_from dry_run"),
    )
    assert start is not None  # no dry run
    loop = create_host_loop(
        job,
        cluster=cluster,
        with_logits=False,
        watch=ProgressWatch(cluster, seconds=0),
        profile_dir=None,
        is_stop_requested=lambda: False,
        **options.pick("global_batch_size seed statistics_batches"),
    )
    loop.begin(start)
    progress = Progress(total_steps=plan.total_steps, stream=None)
    return loop, Recorder(
        log=start.log, progress=progress, **options.pick("model_dir max_to_keep")
    )


def train_epoch(loop: HostLoop, steps_per_epoch: int) -> None:
    """Trains to the end of the epoch."""
    loop.train_until_next_event()
    while loop.step % steps_per_epoch:
        loop.train_until_next_event()


def wait_for_checkpoint(model_dir: str, step: int) -> None:
    """Returns when the files of this step are on disk."""
    while step not in list_checkpoints(checkpoint_dir(model_dir)):
        time.sleep(0.01)


def compare(name: str, *, rounds: int, **keywords: Any) -> None:
    """Times one model and prints what its saves cost."""
    costs, waits, processor = [], [], []
    with tempfile.TemporaryDirectory() as model_dir:
        options = TrainingOptions(
            model_dir=model_dir,
            model=name,
            lr_schedule="constant",
            learning_rate=1e-3,
            train_steps=1 << 40,
            **keywords,
        )
        epoch = round(60_000 / options.global_batch_size)
        loop, recorder = begin_run(options)
        with contextlib.closing(recorder):
            for _ in range(5):  # compiles, and finds the length of a call
                train_epoch(loop, epoch)
            for number in range(rounds):
                seconds, used = {}, {}
                for saves in (False, True) if number % 2 else (True, False):
                    step = loop.step
                    used_before, began = time.process_time(), time.perf_counter()
                    if saves:
                        loop.save(recorder)
                        waits.append(time.perf_counter() - began)
                    train_epoch(loop, epoch)
                    seconds[saves] = time.perf_counter() - began
                    if saves:
                        wait_for_checkpoint(model_dir, step)
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
    compare(
        "mlp", rounds=8 * rounds, global_batch_size=32, augment=False, ema_decay=0.0
    )
    compare("cnn", rounds=rounds)


if __name__ == "__main__":
    app.run(main)
