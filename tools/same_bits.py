"""Trains each model on several sets of devices, and compares all bits of what came out.

  python tools/same_bits.py [--steps=500] [--models=mlp] [--dtypes=float32]

Prints a Markdown table: a row for each way to run, a column for each model and dtype, in
each cell the SHA-256 of all weights, averages and optimizer slots. One value a column is
what `--num_microbatches` promises; the exit code is 1 where there are more.
"""

import dataclasses
import hashlib
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from absl import app, flags

from mnist_dist.run.checkpoints import list_checkpoints, load_arrays

STEPS = flags.DEFINE_integer("steps", 500, "Steps of a run.", lower_bound=20)
KILLS = flags.DEFINE_integer("kills", 5, "Kills of the run of the last row.")
MODELS = flags.DEFINE_list("models", ["mlp", "cnn", "mixed"], "Columns.")
DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Columns of each model.")

# One thread a process: the bits of a kernel depend on the number.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_PRELOADED = ["same_bits_worker", "mnist_dist.training.run_training"]


@dataclasses.dataclass(frozen=True)
class Way:
    """How a run is spread over processes and replicas."""

    num_workers: int = 1
    replicas_each: int = 1

    def __str__(self) -> str:
        if self.num_workers == 1 == self.replicas_each:
            return "1 device"
        if self.num_workers == 1:
            return f"{self.replicas_each} replicas in one process"
        if self.replicas_each == 1:
            return f"{self.num_workers} workers"
        return f"{self.num_workers} workers of {self.replicas_each} replicas"


WAYS = (Way(), Way(1, 2), Way(1, 4), Way(2), Way(4), Way(2, 2))


class Process(Protocol):
    """A process that was started."""

    def wait(self) -> int:
        """Returns its exit code."""

    def kill(self, signal_number: int) -> None:
        """Sends it a signal."""


# (replicas, flags of train) -> a worker.
StartWorker = Callable[[int, Sequence[str]], Process]


def train_flags(model: str, dtype: str, *, steps: int) -> list[str]:
    """Returns the flags of a column, whose global batch of 64 is 8 microbatches."""
    return [
        f"--model={'same_bits_worker:create_mixed' if model == 'mixed' else model}",
        f"--dtype={dtype}",
        f"--train_steps={steps}",
        f"--checkpoint_interval={steps // 20}",
        f"--eval_interval={steps // 2}",
        "--num_microbatches=8",
        "--global_batch_size=64",
        "--augment",
        "--noexport",
        "--noprogress",
        "--num_gpus=0",
        "--peer_timeout=60",
    ]


def start_workers(
    way: Way, model_dir: Path, train_flags: Sequence[str], *, start: StartWorker
) -> list[Process]:
    """Starts the workers of a run; the first is the chief."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(way.num_workers)]
    hosts = ",".join(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    for free in sockets:
        free.close()
    workers = []
    for rank in range(way.num_workers):
        place = model_dir if rank == 0 else model_dir / f"not-for-{rank}"
        arguments = [*train_flags, f"--model_dir={place}"]
        if way.num_workers == 1:
            arguments.append(f"--logical_cpus={way.replicas_each}")
        else:
            arguments += [f"--worker_hosts={hosts}", f"--task_index={rank}"]
        workers.append(start(way.replicas_each, arguments))
    return workers


def train(
    way: Way, model_dir: Path, train_flags: Sequence[str], *, start: StartWorker
) -> None:
    """Trains to the end.

    Raises:
      RuntimeError: a worker failed.
    """
    workers = start_workers(way, model_dir, train_flags, start=start)
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise RuntimeError(f"{model_dir}: {way}: the workers ended with {codes}")


def train_with_kills(
    model_dir: Path,
    train_flags: Sequence[str],
    *,
    ways: Sequence[Way],
    steps: int,
    kills: int,
    start: StartWorker,
) -> None:
    """Trains to the end, killed at random steps, and goes on another way each time.

    Raises:
      RuntimeError: a worker failed, or the run had ended before it was killed.
    """
    rng = random.Random(1)
    way, directory = rng.choice(ways), str(model_dir / "checkpoints")
    for after in sorted(rng.sample(range(steps * 3 // 4), kills)):
        workers = start_workers(way, model_dir, train_flags, start=start)
        deadline = time.monotonic() + 240
        while max(list_checkpoints(directory), default=0) < after:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{model_dir}: no checkpoint after step {after}")
            time.sleep(0.001)
        for worker in workers:
            worker.kill(signal.SIGKILL)
        codes = [worker.wait() for worker in workers]
        if codes[0] == 0:
            raise RuntimeError(f"{model_dir}: had ended before it was killed")
        way = rng.choice([other for other in ways if other != way])
    train(way, model_dir, train_flags, start=start)


def digest(model_dir: Path, *, step: int) -> str:
    """Returns the SHA-256 of all weights, averages and slots of a checkpoint."""
    arrays = load_arrays(f"{model_dir}/checkpoints/ckpt-{step}")
    names = [n for n in arrays if n.startswith(("model/", "ema/", "optimizer/"))]
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(name.encode() + arrays[name].tobytes())
    return found.hexdigest()


class _Worker:
    """A fork of a server that has imported everything and run nothing."""

    def __init__(self, num_replicas: int, arguments: Sequence[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        # A worker's output would meet the table.
        self._process = context.Process(
            target=_train_quietly, args=(num_replicas, list(arguments))
        )
        self._process.start()

    def wait(self) -> int:
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        return code

    def kill(self, signal_number: int) -> None:
        assert self._process.pid
        os.kill(self._process.pid, signal_number)


def _train_quietly(num_replicas: int, arguments: Sequence[str]) -> None:
    import same_bits_worker

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    same_bits_worker.train(num_replicas, arguments)


def main(argv: list[str]) -> int:
    """Fills the table column by column, and prints it."""
    del argv
    columns = [(model, dtype) for model in MODELS.value for dtype in DTYPES.value]
    rows = [*map(str, WAYS), f"killed {KILLS.value} times, each time another way"]
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        for column in columns:
            told = train_flags(*column, steps=STEPS.value)
            for number, row in enumerate(rows):
                place = Path(folder) / "-".join([*column, str(number)])
                if number < len(WAYS):
                    train(WAYS[number], place, told, start=_Worker)
                else:
                    train_with_kills(
                        place,
                        told,
                        ways=WAYS,
                        steps=STEPS.value,
                        kills=KILLS.value,
                        start=_Worker,
                    )
                cells[row, column] = digest(place, step=STEPS.value)
                print(*column, row, cells[row, column], file=sys.stderr, flush=True)
    print("| |", " | ".join(", ".join(column) for column in columns), "|")
    print("|---" * (1 + len(columns)) + "|")
    for row in rows:
        found = [f"`{cells[row, column][:16]}`" for column in columns]
        print("|", row, "|", " | ".join(found), "|")
    return int(any(len({cells[r, c] for r in rows}) > 1 for c in columns))


if __name__ == "__main__":
    os.environ |= ENVIRONMENT
    sys.exit(app.run(main))
