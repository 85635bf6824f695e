"""One run, as its `config.json` and `metrics.jsonl` tell of it.

Both files may be another's, damaged, or still growing: each value is checked before it
is used, and nothing is written.
"""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_dist.errors import InputError
from mnist_dist.files.local import kind_at
from mnist_dist.files.untrusted import quoted
from mnist_dist.run.activity import is_being_written
from mnist_dist.run.config_file import load_config, starts_in
from mnist_dist.run.paths import config_path, flag_file_path, metrics_path
from mnist_dist.run.records import read_lines

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What a run has recorded; None is what it does not tell.

    Attributes:
      name: of the run among those it is compared with.
      model_dir: where it lies.
      state: `done`, `stopped`, `failed`, `running`, or `cut off` for one that was
        killed and has not gone on.
      reason: why it ended; empty while it has not.
      step: updates done, as far as they are on record.
      total_steps: the run's length, unless it stops early.
      best_accuracy: of the best evaluation, 0 to 1.
      best_step: of that evaluation.
      final_accuracy: of the last evaluation.
      final_loss: mean cross-entropy of the last evaluation.
      split: what was evaluated on: `test` or `validation`.
      train_loss: of the last training record.
      seconds: from each start to the last record that it left, added up.
      images_per_second: training images a second, over all records.
      devices: kinds and numbers, as `2 GPU`, of the last start.
      num_workers: processes of the last start.
      num_resumes: how often it went on after a stop, a failure or a kill.
      options: each option of the last start by name.
      versions: of Python and the libraries, at the last start.
      command: does the run again in another directory, NEW. Runs of earlier versions
        have no flag file to do it with.
      train: training records, in the order of their steps.
      evaluations: records of evaluations, likewise.
      problems: what is damaged or missing, a line each.
    """

    name: str
    model_dir: str
    state: str
    reason: str
    step: int
    total_steps: int | None
    best_accuracy: float | None
    best_step: int | None
    final_accuracy: float | None
    final_loss: float | None
    split: str | None
    train_loss: float | None
    seconds: float | None
    images_per_second: float | None
    devices: str | None
    num_workers: int | None
    num_resumes: int | None
    options: Mapping[str, Any]
    versions: Mapping[str, Any]
    command: str | None
    train: Sequence[Record]
    evaluations: Sequence[Record]
    problems: Sequence[str]


def load_run_summary(model_dir: str, *, name: str) -> RunSummary:
    """Reads what a run has recorded.

    Raises:
      InputError: the directory is not a run's; or one of the two files is no regular
        file, cannot be read, or is not what a run writes.
    """
    is_written = is_being_written(model_dir)  # first: what ends meanwhile is read whole
    config = load_config(model_dir)
    lines = read_lines(metrics_path(model_dir))
    if config is None and not any(line.record for line in lines):
        raise InputError(
            f"{quoted(model_dir)}: found no config.json and no record in metrics.jsonl, "
            "expected the directory of a run"
        )
    problems = []
    if config is None:
        problems.append(f"{config_path(model_dir)} is missing: options are unknown")
    damaged = [line for line in lines if line.record is None]
    # The last line of a run that is being written may not be whole yet.
    if damaged and not (is_written and damaged == lines[-1:]):
        problems.append(
            f"{metrics_path(model_dir)}: {len(damaged)} of {len(lines)} lines are no "
            f"records and are left out, the first is line {damaged[0].number}"
        )
    records = [line.record for line in lines if line.record]
    records = [r for r in records if integer(r, "step") is not None]
    train = [r for r in records if r["kind"] == "train"]
    evaluations = [r for r in records if r["kind"] == "eval"]
    config = config or {}
    resolved = config.get("resolved", {})
    ended = resolved.get("ended")
    ended = ended if isinstance(ended, dict) else {}
    rated = [r for r in evaluations if number(r, "accuracy") is not None]
    best = max(rated, key=lambda r: r["accuracy"], default={})  # the first of equals
    last = evaluations[-1] if evaluations else {}
    starts = starts_in(config)
    state, reason = _state(ended, is_written=is_written)
    return RunSummary(
        name=name,
        model_dir=model_dir,
        state=state,
        reason=reason,
        step=max(
            [r["step"] for r in records] + [integer(ended, "step") or 0], default=0
        ),
        total_steps=integer(resolved, "total_steps"),
        best_accuracy=number(best, "accuracy"),
        best_step=integer(best, "step"),
        final_accuracy=number(last, "accuracy"),
        final_loss=number(last, "loss"),
        split=text(last, "split"),
        train_loss=number(train[-1], "loss") if train else None,
        seconds=_seconds([start["time"] for start in starts], records),
        images_per_second=_images_per_second(train),
        devices=_devices(resolved.get("devices")),
        num_workers=integer(resolved, "num_workers"),
        num_resumes=len(starts) - 1 if starts else None,
        options=config.get("flags", {}),
        versions=v if isinstance(v := config.get("versions"), dict) else {},
        command=_command(flag_file_path(model_dir)),
        train=train,
        evaluations=evaluations,
        problems=problems,
    )


def number(record: Record, name: str) -> float | None:
    """Returns a finite number of a record, if it has one of this name."""
    value = record.get(name)
    if type(value) is int:
        return float(value) if abs(value) < 1 << 63 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def integer(record: Record, name: str) -> int | None:
    """Returns a whole number of a record, if it has one of this name, of 64 bits."""
    value = record.get(name)
    return value if type(value) is int and abs(value) < 1 << 63 else None


def text(record: Record, name: str) -> str | None:
    """Returns a text of a record, if it has one of this name."""
    value = record.get(name)
    return value if isinstance(value, str) else None


def _state(ended: Record, *, is_written: bool) -> tuple[str, str]:
    """Returns in a word how a run is, and why it ended."""
    reason = text(ended, "reason")
    if is_written and reason is None:
        return "running", ""
    if reason is None:
        return "cut off", ""
    if reason.startswith("stopped by "):
        return "stopped", reason
    if reason.startswith("failed: "):
        return "failed", reason.removeprefix("failed: ")
    return "done", reason


def _seconds(starts: Sequence[float], records: Sequence[Record]) -> float | None:
    """Adds up the time from each start to its last record that is still there."""
    times = [t for r in records if (t := number(r, "time")) is not None]
    if not starts or not times:
        return None
    total = 0.0
    for began, ended in zip(starts, [*starts[1:], math.inf], strict=True):
        total += max((t - began for t in times if began <= t < ended), default=0.0)
    return total


def _images_per_second(train: Sequence[Record]) -> float | None:
    """Returns the mean speed, each record weighted by its steps."""
    steps = seconds = 0.0  # seconds for one image a step: the batch cancels out
    before = 0
    for record in train:
        rate = number(record, "images_per_second")
        if rate and rate > 0 and record["step"] > before:
            steps += record["step"] - before
            seconds += (record["step"] - before) / rate
        before = record["step"]
    return steps / seconds if seconds else None


def _command(flag_file: str) -> str | None:
    if kind_at(flag_file) != "a file":
        return None
    return f"mnist-dist train --flagfile={shlex.quote(flag_file)} --model_dir=NEW"


def _devices(names: Any) -> str | None:
    """Returns TensorFlow's names of devices as kinds and numbers."""
    if not isinstance(names, list) or not names:
        return None
    kinds = [str(name).rpartition("device:")[2].partition(":")[0] for name in names]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
