"""An evaluation in TensorBoard: figures, a report, the surest mistakes as pictures.

Each step has an event file of its own, which appears whole: an evaluation made again
replaces the one before, and none is there twice or in part.
"""

import io
import time

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from mnist_dist.evaluation.classification_report import (
    ClassificationReport,
    format_report,
    surest_mistakes,
)
from mnist_dist.files.durable import replacing, reporting_errors
from mnist_dist.run.paths import evaluation_events_path

_GRID = 6  # mistakes shown, a row and a column
_CELL_PIXELS = 24  # of a confusion matrix, which TensorBoard would blur
_MAX_DRAWN_CLASSES = 128


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
    # In memory: TensorFlow's own writer says nothing of a disk that is full.
    events = io.BytesIO()
    for event in (
        Event(file_version="brain.Event:2"),
        Event(summary=summary, step=step),
    ):
        event.wall_time = time.time()
        RecordWriter(events).write(event.SerializeToString())
    path = evaluation_events_path(directory, step)
    with reporting_errors(path, so="the run is as it was"):
        tf.io.gfile.makedirs(directory)
        with replacing(path) as file:
            file.write(events.getvalue())


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
