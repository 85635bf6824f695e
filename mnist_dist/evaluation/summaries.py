"""An evaluation in TensorBoard: figures, a report, the surest mistakes as pictures.

Each step has an event file of its own, which appears whole: an evaluation made again
replaces the one before, and none is there twice or in part.
"""

import io
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.pr_curve.summary import pb as pr_curve_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from mnist_dist.evaluation.classification_report import (
    ClassificationReport,
    describe_class,
    format_report,
    surest_mistakes,
)
from mnist_dist.files.durable import replacing, reporting_errors
from mnist_dist.run.board_images import draw_captioned_grid, draw_confusion, image_pb
from mnist_dist.run.paths import evaluation_events_path

_GRID = 6  # mistakes shown, a row and a column
_MAX_DRAWN_CLASSES = 128
_THRESHOLDS = 101  # of a curve of precision and recall


def save_summaries(
    directory: str,
    step: int,
    report: ClassificationReport,
    *,
    images: np.ndarray,
    class_names: Sequence[str] | None,
) -> None:
    """Writes the TensorBoard event file of a step.

    Args:
      directory: of the event files; no other program may write its own there.
      step: of the evaluated checkpoint.
      report: what came out; its `loss` and `accuracy` have the trainer's tags.
      images: uint8 [n, height, width, channels], those of the report.
      class_names: the name of each class; None where the data set has none.

    Raises:
      RunError: it cannot be written; what was there still is.
    """
    summary = Summary()
    summary.MergeFrom(scalar_pb("loss", report.loss))
    summary.MergeFrom(scalar_pb("accuracy", report.accuracy))
    summary.MergeFrom(summarize_answers(report, images=images, class_names=class_names))
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


def summarize_answers(
    report: ClassificationReport,
    *,
    images: np.ndarray,
    class_names: Sequence[str] | None,
) -> Summary:
    """Returns what TensorBoard shows of answers: figures of classes, and pictures.

    Args:
      report: what came out.
      images: uint8 [n, height, width, channels], those of the report.
      class_names: the name of each class; None where the data set has none.
    """
    summary = Summary()
    summary.MergeFrom(scalar_pb("errors", report.num_errors))
    summary.MergeFrom(text_pb("report", _as_code(format_report(report, class_names))))
    if len(report.support) <= _MAX_DRAWN_CLASSES:
        for name, values in (("f1", report.f1), ("classes", report.recall)):
            for number, value in enumerate(values):
                if np.isfinite(value):
                    summary.MergeFrom(scalar_pb(f"{name}/{number}", value))
        if report.confusion is not None:
            drawn = draw_confusion(report.confusion)
            summary.MergeFrom(image_pb("confusion", drawn))
    if report.num_errors:
        mistakes = surest_mistakes(report)[: _GRID * _GRID]
        captions = [
            (
                f"is {describe_class(report.labels[i], class_names)}",
                f"{report.confidences[i]:.0%} for "
                f"{describe_class(report.classes[i], class_names)}",
            )
            for i in mistakes
        ]
        grid = draw_captioned_grid(images[mistakes], captions, columns=_GRID)
        summary.MergeFrom(image_pb("mistakes", grid))
    return summary


def summarize_curves(labels: np.ndarray, probabilities: np.ndarray) -> Summary:
    """Returns the precision and recall of each class against the others.

    Args:
      labels: int [n].
      probabilities: float32 [n, num_classes].
    """
    summary = Summary()
    for number, column in enumerate(probabilities.T[:_MAX_DRAWN_CLASSES]):
        curve = pr_curve_pb(
            f"pr/{number}", labels == number, column, num_thresholds=_THRESHOLDS
        )
        summary.MergeFrom(Summary.FromString(curve.SerializeToString()))
    return summary


def _as_code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())  # Markdown
