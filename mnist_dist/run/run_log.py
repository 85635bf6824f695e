"""What a run records: each point once, however often the run was stopped.

A start drops what lies past the step that it goes on from. A reader, or a kill, sees
each point whole or not at all.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary

from mnist_dist.files.durable import remove_unfinished, reporting_errors, sync
from mnist_dist.run.event_files import EventFileWriter
from mnist_dist.run.lock import RunLock
from mnist_dist.run.metric_writer import MetricWriter
from mnist_dist.run.metrics import SO, JsonLinesWriter, create_record


class RunLog:
    """Gives the metrics of one run to all writers; only the chief has one.

    The writers are `metrics.jsonl`, TensorBoard's event files, and those of the user.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        resume_step: int = 0,
        lock: RunLock | None = None,
        writers: Sequence[MetricWriter] = (),
    ) -> None:
        """Drops every point past `resume_step`, then opens the files for appending.

        Args:
          model_dir: of the run.
          resume_step: from which the run goes on.
          lock: of the run; before each write it is checked that the run is where it was.
          writers: more that take the metrics; `close` closes them.

        Raises:
          InputError: a file of the run is no regular file, as a named pipe, or cannot be
            read.
          RunError: the disk is full, or a file cannot be read or written.
        """
        self._first_step = resume_step + 1
        self._lock = lock
        with reporting_errors(model_dir, so=SO):
            tf.io.gfile.makedirs(model_dir)
            remove_unfinished(model_dir, is_mine=True)
            records = JsonLinesWriter(model_dir, last_step=resume_step)
            self._evaluated = records.evaluated
            # Not the point of an evaluation that was withdrawn, either.
            last_eval = resume_step if self.has_eval(resume_step) else resume_step - 1
            events = EventFileWriter(
                model_dir,
                last_steps={"train": resume_step, "eval": last_eval},
                first_step=self._first_step,
                so=SO,
            )
            sync(model_dir)
        self._events = events
        self._writers: list[MetricWriter] = [records, events, *writers]

    def write_train(
        self, *, step: int, epoch: float, **metrics: float
    ) -> dict[str, Any]:
        """Records the training metrics since the last time; returns the record.

        Raises:
          RunError: the disk is full; likewise of all that writes.
        """
        return self._write_scalars("train", metrics, step=step, epoch=epoch, details={})

    def write_eval(
        self,
        *,
        step: int,
        epoch: float,
        loss: float,
        accuracy: float,
        split: str,
        num_examples: int,
    ) -> dict[str, Any]:
        """Records an evaluation of `split`; returns the record."""
        record = self._write_scalars(
            "eval",
            {"loss": loss, "accuracy": accuracy},
            step=step,
            epoch=epoch,
            details={"split": split, "num_examples": num_examples},
        )
        self._evaluated[step] = record["accuracy"]
        return record

    def write_text(self, name: str, markdown: str) -> None:
        """Records a text for the first step that it holds for."""
        # What a command line held that is not UTF-8 is shown escaped.
        markdown = markdown.encode(errors="backslashreplace").decode()
        self._check_place()
        for writer in self._writers:
            writer.write_text(name, markdown, step=self._first_step)

    def write_summary(
        self, kind: str, summary: Summary, *, step: int | None = None
    ) -> None:
        """Records what only TensorBoard can show, of a step or of this start.

        Args:
          kind: `train` or `eval`.
          summary: as TensorBoard's plugins take it.
          step: updates done; None is the first step of this start.
        """
        self._check_place()
        step = self._first_step if step is None else step
        self._events.write_summary(kind, summary, step=step)

    def write_session(self, summary: Summary) -> None:
        """Records a run's settings for TensorBoard's table, in place of earlier ones."""
        self._check_place()
        self._events.write_session("eval", summary, step=self._first_step)

    def has_eval(self, step: int) -> bool:
        """Whether this step was evaluated, by this process or an earlier one."""
        return step in self._evaluated

    def eval_accuracy(self, step: int) -> float | None:
        """Returns the accuracy of a step's evaluation, if there was one."""
        return self._evaluated.get(step)

    def last_eval_accuracy(self) -> float | None:
        """Returns the accuracy of the latest evaluation, if there was one."""
        return next(reversed(self._evaluated.values()), None)

    def flush(self) -> None:
        """Returns when everything written would outlast a power failure.

        A checkpoint is written after it: that the run is where it was is checked too.
        """
        self._check_place()
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Flushes and closes; a second time it does nothing."""
        with contextlib.ExitStack() as each:  # also those after one that fails
            each.callback(
                self._check_place
            )  # runs last: its error says more than theirs
            for writer in self._writers:
                each.callback(writer.close)

    def _check_place(self) -> None:
        if self._lock:
            self._lock.check()

    def _write_scalars(
        self,
        kind: str,
        scalars: Mapping[str, float],
        *,
        step: int,
        epoch: float,
        details: Mapping[str, object],
    ) -> dict[str, Any]:
        self._check_place()
        now = time.time()
        for writer in self._writers:
            writer.write_scalars(
                kind, scalars, step=step, epoch=epoch, wall_time=now, details=details
            )
        return create_record(
            kind, scalars, step=step, epoch=epoch, wall_time=now, details=details
        )
