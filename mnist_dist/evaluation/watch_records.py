"""What `evaluate --watch` has evaluated: a JSON file for each step.

It lies beside the step's event file. Each appears whole; an evaluation made again
replaces the one before. All records in a directory form one curve: they are of the same
run, split, data set and kind of weights.
"""

import json
from typing import Any

import tensorflow as tf

from mnist_dist.errors import InputError
from mnist_dist.files.durable import replacing, reporting_errors
from mnist_dist.run.directory import list_evaluations
from mnist_dist.run.paths import evaluation_path


def save_record(directory: str, step: int, record: dict[str, Any]) -> None:
    """Writes the JSON file of a step.

    Raises:
      RunError: it cannot be written; what was there still is.
    """
    path = evaluation_path(directory, step)
    with reporting_errors(path, so="the run is as it was"):
        tf.io.gfile.makedirs(directory)
        with replacing(path) as file:
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")


def load_record(directory: str, step: int) -> dict[str, Any] | None:
    """Reads the JSON file of a step; None if there is none, or it is no record."""
    try:
        with tf.io.gfile.GFile(evaluation_path(directory, step), "rb") as file:
            record = json.loads(file.read())
        is_record = "written" in record["evaluated"] and "sha256" in record["data"]
    except (tf.errors.OpError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if is_record else None


def check_records(directory: str, record: dict[str, Any]) -> None:
    """Checks that a record can join those in a directory.

    They have all passed this check, so it compares with one of them.

    Args:
      directory: of the records.
      record: one more; it need not hold results yet.

    Raises:
      InputError: they are of another run, split or data set, or of other weights.
    """
    expected = _kind(record)
    records = (load_record(directory, step) for step in list_evaluations(directory))
    other = next(filter(None, records), None)
    if other is None:
        return
    found = _kind(other)
    # Older versions did not record the run.
    if differ := [n for n in expected if found[n] not in (None, expected[n])]:
        raise InputError(
            f"--summary_dir: {directory} has evaluations of "
            f"{', '.join(str(found[name]) for name in differ)}, expected "
            f"{', '.join(str(expected[name]) for name in differ)}; give another "
            "--summary_dir"
        )


def _kind(record: dict[str, Any]) -> dict[str, str | None]:
    """Returns, in words, what all evaluations have in common that form one curve."""
    run, data = record["evaluated"].get("run"), record["data"]
    return {
        "run": run and f"the run {run}",
        "split": f"the split {data.get('split')}",
        "data": f"the data set with SHA-256 {str(data['sha256'])[:12]}...",
        "weights": "the moving average"
        if record.get("moving_average")
        else "the weights themselves",
    }
