"""Whole programs, as a user waits for them: to the first step, to the end."""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from benchmarks.processes import environ_of_tools
from mnist_dist.device.quiet_imports import quiet_imports

_IMPORT = "import time, tensorflow; print(time.monotonic())"
_FIRST_STEP = """
import os, sys, time
import mnist_dist
def stop(record):
    print(time.monotonic(), flush=True)
    os._exit(0)
mnist_dist.train_model(
    model_dir=sys.argv[1], summary_interval=1, on_record=stop, progress=False
)
"""


def time_import() -> float:
    """Returns the seconds from the start of Python to TensorFlow's end of import."""
    return _time_to_line(["-c", _IMPORT])


def time_first_step() -> float:
    """Returns the seconds from a training's start to the record of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        return _time_to_line(["-c", _FIRST_STEP, os.path.join(folder, "run")])


def _time_to_line(arguments: Sequence[str]) -> float:
    began = time.monotonic()
    process = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ_of_tools(),
        text=True,
        check=True,
    )
    return float(process.stdout.split()[-1]) - began


@dataclasses.dataclass(frozen=True)
class WholeRun:
    """What a run of `train` took.

    Attributes:
      seconds: from the command to its end.
      peak_bytes: of resident memory.
      event_seconds: what an `evaluation` took, what the loop waited for a `checkpoint`,
        and the rest of the `host`'s work between two records, summaries above all.
    """

    seconds: float
    peak_bytes: int
    event_seconds: Mapping[str, float]


def time_training(*, num_intervals: int, steps_per_interval: int) -> WholeRun:
    """Trains as `train` does by default, with all events at each interval.

    Raises:
      RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        model_dir = os.path.join(folder, "run")
        command = [sys.executable, "-m", "mnist_dist.train", f"--model_dir={model_dir}"]
        command.append(f"--train_steps={num_intervals * steps_per_interval}")
        command += [
            f"--{event}_interval={steps_per_interval}"
            for event in ("eval", "checkpoint", "summary")
        ]
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env=environ_of_tools()
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}")
        events = _read_event_seconds(model_dir, steps_per_interval)
    return WholeRun(seconds, usage.ru_maxrss * 1024, events)


def _read_event_seconds(model_dir: str, steps_per_interval: int) -> dict[str, float]:
    """Returns the medians over all intervals but the first, which has no event."""
    with quiet_imports():
        import tensorflow as tf
        from tensorboard.backend.event_processing import event_accumulator
    events = event_accumulator.EventAccumulator(
        os.path.join(model_dir, "train"), {event_accumulator.TENSORS: 0}
    ).Reload()

    def read(name: str) -> list[float]:
        points = events.Tensors(f"perf/{name}")
        return [tf.make_ndarray(point.tensor_proto).item() for point in points[1:]]

    in_steps = [1e-3 * ms * steps_per_interval for ms in read("step_ms")]
    totals = [a / b for a, b in zip(in_steps, read("share_step"), strict=True)]
    return {
        name: statistics.median(
            total * share
            for total, share in zip(totals, read(f"share_{name}"), strict=True)
        )
        for name in ("evaluation", "checkpoint", "host")
    }
