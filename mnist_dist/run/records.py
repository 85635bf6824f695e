"""Reads `metrics.jsonl`: each training record and evaluation of a run, one a line.

Readers need no TensorFlow for it.
"""

import io
import json
from typing import Any, NamedTuple

from mnist_dist.files.local import read_bytes
from mnist_dist.run.paths import metrics_path

KINDS = ("train", "eval")  # of records


_MAX_BYTES = 1 << 30


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
      InputError: it is no regular file, or cannot be read.
    """
    content = read_bytes(path, max_bytes=_MAX_BYTES) or b""
    texts = io.BytesIO(content).readlines()
    return [Line(n, text, _parse(text)) for n, text in enumerate(texts, start=1)]


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("kind") not in KINDS:
        return None
    step, accuracy = record.get("step"), record.get("accuracy")
    is_accuracy = accuracy is None or (
        type(accuracy) in (int, float) and 0 <= accuracy <= 1
    )
    return record if type(step) is int and step >= 0 and is_accuracy else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def read_accuracies(model_dir: str) -> dict[int, float]:
    """Returns the accuracy at each step that was evaluated.

    Lines that tell none are skipped.

    Raises:
      InputError: as `read_lines` does.
    """
    return {
        line.record["step"]: float(line.record["accuracy"])
        for line in read_lines(metrics_path(model_dir))
        if line.record
        and line.record["kind"] == "eval"
        and line.record.get("accuracy") is not None
    }
