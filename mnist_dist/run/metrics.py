"""Writes `metrics.jsonl`: each training record and evaluation of a run, one a line."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from mnist_dist.files.appended import AppendedFile
from mnist_dist.files.durable import replacing, reporting_errors
from mnist_dist.run.paths import metrics_path
from mnist_dist.run.records import Line, read_lines

SO = "the checkpoints so far are intact"  # after an error


def check_metrics(model_dir: str) -> None:
    """Checks that `metrics.jsonl` can be read, and changes nothing.

    Raises:
      InputError: as `read_lines` does.
    """
    read_lines(metrics_path(model_dir))


def withdraw_evaluation(model_dir: str, step: int) -> None:
    """Drops the evaluation of a step, and all that is later: its weights are others now.

    The run's next start takes the points out of TensorBoard's files too.

    Raises:
      InputError: as `read_lines` does.
      RunError: the records cannot be written.
    """
    path = metrics_path(model_dir)
    with reporting_errors(path, so=SO):
        _rewrite(
            path,
            lambda record: (
                record["step"] < step
                or (record["step"] == step and record["kind"] != "eval")
            ),
        )


def create_record(
    kind: str,
    scalars: Mapping[str, float],
    *,
    step: int,
    epoch: float,
    wall_time: float,
    details: Mapping[str, object],
) -> dict[str, Any]:
    """Returns what a line says; the arguments are those of `MetricWriter`.

    JSON has no NaN: a value that is not finite becomes null.
    """
    record = {"kind": kind, "step": step, "epoch": epoch, "time": wall_time}
    finite = {n: v if math.isfinite(v) else None for n, v in scalars.items()}
    return {**record, **finite, **details}


class JsonLinesWriter:
    """Appends to `metrics.jsonl`; a `MetricWriter`.

    Attributes:
      evaluated: accuracy by step of the evaluations that were there at the start; None
        where the record tells none.
    """

    def __init__(self, model_dir: str, *, last_step: int) -> None:
        """Drops every record past `last_step`, then opens the file.

        Raises:
          InputError: it is no regular file, or cannot be read.
          tf.errors.OpError, OSError: it cannot be written.
        """
        path = metrics_path(model_dir)
        kept = _rewrite(path, lambda record: record["step"] <= last_step)
        self.evaluated: dict[int, float | None] = {
            record["step"]: record.get("accuracy")
            for record in kept
            if record["kind"] == "eval"
        }
        self._file = AppendedFile(path, so=SO)

    def write_scalars(
        self,
        kind: str,
        scalars: Mapping[str, float],
        *,
        step: int,
        epoch: float,
        wall_time: float,
        details: Mapping[str, object],
    ) -> None:
        """Appends one line."""
        record = create_record(
            kind, scalars, step=step, epoch=epoch, wall_time=wall_time, details=details
        )
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def write_text(self, name: str, markdown: str, *, step: int) -> None:
        """Does nothing: `config.json` holds the settings."""

    def flush(self) -> None:
        """Returns when everything written would outlast a power failure."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes; a second time it does nothing."""
        self._file.close()


def _rewrite(path: str, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Drops records from the file, and lines that are none; returns those that stay.

    What a kill or a power failure cut off was not yet followed by a checkpoint, and so
    lies after every record that is to stay. Damage before one has another cause: then
    the file as it was is kept under another name.
    """
    lines = read_lines(path)
    kept: list[Line] = []
    damaged: Line | None = None
    is_old_damage = False
    for line in lines:
        if line.record is None:
            damaged = damaged or line
        elif keep(line.record):
            kept.append(line)
            is_old_damage = damaged is not None
    content = b"".join(line.text.removesuffix(b"\n") + b"\n" for line in kept)
    if damaged and is_old_damage:
        aside = _free_path(f"{path}.damaged")
        with replacing(aside) as file:
            file.write(b"".join(line.text for line in lines))
        logging.warning(
            "%s: line %d is no record and is dropped: %r; the file as it was is %s now",
            *(path, damaged.number, damaged.text[:60], aside),
        )
    elif damaged:
        logging.warning("%s: line %d was cut off and is dropped", path, damaged.number)
    if content != b"".join(line.text for line in lines):
        with replacing(path) as file:
            file.write(content)
    return [line.record for line in kept if line.record]


def _free_path(path: str) -> str:
    number, free = 2, path
    while tf.io.gfile.exists(free):
        number, free = number + 1, f"{path}-{number}"
    return free
