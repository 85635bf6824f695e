"""`metrics.jsonl`: each training record and evaluation of a run, one JSON object a line."""

import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from mnist_dist.errors import InputError
from mnist_dist.files.appended import AppendedFile
from mnist_dist.files.durable import replacing, reporting_errors
from mnist_dist.run.directory import metrics_path

KINDS = ("train", "eval")  # of records
SO = "the checkpoints so far are intact"  # after an error


class Line(NamedTuple):
    """One line of `metrics.jsonl`.

    Attributes:
      number: counted from 1.
      text: with its end, if it has one.
      record: what it says; None if it is no record.
    """

    number: int
    text: bytes
    record: dict[str, Any] | None


def read_lines(path: str) -> list[Line]:
    """Reads `metrics.jsonl`; a file that is not there has no lines.

    Raises:
      tf.errors.OpError: it cannot be read.
    """
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path, "rb") as file:
        texts = io.BytesIO(file.read()).readlines()
    return [Line(n, text, _parse(text)) for n, text in enumerate(texts, start=1)]


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_record = (
        isinstance(record, dict)
        and record.get("kind") in KINDS
        and isinstance(record.get("step"), int)
    )
    return record if is_record else None


def read_accuracies(model_dir: str) -> dict[int, float]:
    """Returns the accuracy at each step that was evaluated.

    Lines that tell none are skipped, as is a file that cannot be read.
    """
    try:
        lines = read_lines(metrics_path(model_dir))
    except tf.errors.OpError:
        return {}
    accuracies = {}
    for line in lines:
        if line.record and line.record["kind"] == "eval":
            accuracy = line.record.get("accuracy")
            if isinstance(accuracy, int | float):
                accuracies[line.record["step"]] = float(accuracy)
    return accuracies


def check_metrics(model_dir: str, *, last_step: int) -> None:
    """Checks that a run can go on from a step, and changes nothing.

    Raises:
      InputError: as `JsonLinesWriter` does.
    """
    path = metrics_path(model_dir)
    _select(read_lines(path), path=path, last_step=last_step)


def withdraw_evaluation(model_dir: str, step: int) -> None:
    """Drops the evaluation of a step, and all that is later: its weights are others now.

    The run's next start takes the points out of TensorBoard's files too.

    Raises:
      InputError: the records are damaged.
      RunError: they cannot be written.
    """
    path = metrics_path(model_dir)
    with reporting_errors(path, so=SO):
        kept = _select(read_lines(path), path=path, last_step=step)
        is_other = [(r["kind"], r["step"]) != ("eval", step) for _, r in kept]
        _rewrite(path, itertools.compress((text for text, _ in kept), is_other))


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
          InputError: there is damage before a record that is to stay.
          tf.errors.OpError, OSError: it cannot be read or written.
        """
        path = metrics_path(model_dir)
        lines = read_lines(path)
        kept = _select(lines, path=path, last_step=last_step)
        for line in lines:
            if line.record is None:
                logging.warning(
                    "%s: line %d was cut off and is dropped", path, line.number
                )
                break
        _rewrite(path, (text for text, _ in kept))
        self.evaluated: dict[int, float | None] = {
            record["step"]: record.get("accuracy")
            for _, record in kept
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


def _select(
    lines: Iterable[Line], *, path: str, last_step: int
) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns text and record of the lines that stay when a run goes on from a step.

    What a kill or a power failure damaged was not yet followed by a checkpoint, and so
    lies after every record that is to stay.

    Raises:
      InputError: there is damage before one of these.
    """
    kept: list[tuple[bytes, dict[str, Any]]] = []
    damaged: Line | None = None
    for line in lines:
        if line.record is None:
            damaged = damaged or line
        elif line.record["step"] <= last_step:
            if damaged:
                raise InputError(
                    f"{path}: line {damaged.number} is not a metrics record: found "
                    f"{damaged.text[:60]!r}"
                )
            kept.append((line.text.removesuffix(b"\n") + b"\n", line.record))
    return kept


def _rewrite(path: str, lines: Iterable[bytes]) -> None:
    """Leaves these lines in the file, which is not touched if it holds them already."""
    content = b"".join(lines)
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            if file.read() == content:
                return
        with replacing(path) as file:
            file.write(content)
