"""Evaluations on disk: a JSON file and a TensorBoard event file for each step.

Both are named by the step and appear whole: an evaluation made again replaces the one
before, and whatever is killed when, nothing is there twice or in part.
"""

import json
import os
from collections.abc import Collection
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.util.tensor_util import make_tensor_proto

from mnist_dist.errors import InputError
from mnist_dist.evaluation.classification_report import (
    ClassificationReport,
    format_report,
    surest_mistakes,
)
from mnist_dist.files.durable import replacing, reporting_errors
from mnist_dist.run.directory import (
    evaluation_events_path,
    evaluation_path,
    list_evaluations,
)
from mnist_dist.run.event_files import serialize_event_file

_GRID = 6  # mistakes shown, a row and a column
_CELL_PIXELS = 24  # of a confusion matrix, which TensorBoard would blur
_MAX_DRAWN_CLASSES = 128


def save_record(directory: str, step: int, record: dict[str, Any]) -> None:
    """Writes the JSON file of a step.

    Raises:
      RunError: it cannot be written; what was there still is.
    """
    _write(
        evaluation_path(directory, step),
        json.dumps(record, allow_nan=False).encode() + b"\n",
    )


def load_record(directory: str, step: int) -> dict[str, Any] | None:
    """Reads the JSON file of a step; None if there is none, or it is no record."""
    try:
        with tf.io.gfile.GFile(evaluation_path(directory, step), "rb") as file:
            record = json.loads(file.read())
        is_record = "written" in record["evaluated"] and "sha256" in record["data"]
    except (tf.errors.OpError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if is_record else None


def check_records(
    directory: str, record: dict[str, Any], *, known: Collection[int] = ()
) -> set[int]:
    """Checks that the records in a directory and this one can form one curve.

    Args:
      directory: of the records.
      record: one more; need not be complete yet.
      known: steps whose records need no check.

    Returns:
      The steps of all records in the directory.

    Raises:
      InputError: one is of another run, split or data set, or of other weights.
    """
    expected = _kind(record)
    steps = list_evaluations(directory)
    for step in steps.difference(known):
        other = load_record(directory, step)
        found = expected if other is None else _kind(other)
        # What an older version did not record is taken to be the same.
        differ = [n for n in expected if found[n] not in (None, expected[n])]
        if differ:
            raise InputError(
                f"--summary_dir: {directory} has evaluations of "
                f"{', '.join(str(found[name]) for name in differ)}, expected "
                f"{', '.join(str(expected[name]) for name in differ)}; give another "
                "--summary_dir"
            )
    return steps


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


def save_summaries(
    directory: str, step: int, report: ClassificationReport, *, images: np.ndarray
) -> None:
    """Writes the TensorBoard event file of a step.

    Args:
      directory: of the event files; no other program may write its own there.
      step: of the evaluated checkpoint.
      report: what came out; its `loss` and `accuracy` have the trainer's tags.
      images: uint8 [n, height, width, channels], those of the report.

    Raises:
      RunError: it cannot be written; what was there still is.
    """
    summary = Summary()
    summary.MergeFrom(scalar_pb("loss", report.loss))
    summary.MergeFrom(scalar_pb("accuracy", report.accuracy))
    summary.MergeFrom(scalar_pb("errors", report.num_errors))
    summary.MergeFrom(text_pb("report", _as_code(format_report(report))))
    if len(report.support) <= _MAX_DRAWN_CLASSES:
        for number, f1 in enumerate(report.f1):
            if np.isfinite(f1):
                summary.MergeFrom(scalar_pb(f"f1/{number}", f1))
        if report.confusion is not None:
            drawn = draw_confusion(report.confusion)
            summary.MergeFrom(_image_pb("confusion", drawn))
    if report.num_errors:
        mistakes = surest_mistakes(report)[: _GRID * _GRID]
        grid = draw_grid(images[mistakes], columns=_GRID)
        summary.MergeFrom(_image_pb("mistakes", grid))
    content = serialize_event_file(summary, step=step)
    _write(evaluation_events_path(directory, step), content)


def draw_confusion(confusion: np.ndarray) -> np.ndarray:
    """Draws a confusion matrix's rows as shares, the darker the larger.

    The square root makes the few mistakes visible beside the many right answers.

    Args:
      confusion: int [num_classes, num_classes].

    Returns:
      uint8 [pixels, pixels, 1].
    """
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shade = 255 - np.round(255 * np.sqrt(confusion / totals))
    cell = np.ones((_CELL_PIXELS, _CELL_PIXELS))
    return np.kron(shade, cell).astype(np.uint8)[..., np.newaxis]


def draw_grid(images: np.ndarray, *, columns: int) -> np.ndarray:
    """Lays images out in rows, with a line of one pixel between them.

    Args:
      images: uint8 [n, height, width, channels], at least one.
      columns: images in a row.

    Returns:
      uint8 [rows x (height + 1), columns x (width + 1), channels].
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, height + 1, width + 1, channels), np.uint8)
    grid[:, height] = grid[:, :, width] = 128
    grid[:count, :height, :width] = images
    grid = grid.reshape(rows, columns, height + 1, width + 1, channels)
    return grid.swapaxes(1, 2).reshape(
        rows * (height + 1), columns * (width + 1), channels
    )


def _image_pb(tag: str, image: np.ndarray) -> Summary:
    """Returns an image, uint8 [height, width, channels], as TensorBoard shows it."""
    with tf.device("/CPU:0"):
        png = tf.io.encode_png(image).numpy()
    height, width, _ = image.shape
    # As `tf.summary.image` lays it out.
    tensor = make_tensor_proto([f"{width}".encode(), f"{height}".encode(), png])
    metadata = create_summary_metadata(display_name=None, description=None)
    summary = Summary()
    summary.value.add(tag=tag, tensor=tensor, metadata=metadata)
    return summary


def _as_code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())  # Markdown


def _write(path: str, content: bytes) -> None:
    with reporting_errors(path, so="the run is as it was"):
        tf.io.gfile.makedirs(os.path.dirname(path))
        with replacing(path) as file:
            file.write(content)
