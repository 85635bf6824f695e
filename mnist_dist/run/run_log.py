"""The two records of a run: `metrics.jsonl`, and TensorBoard's event files.

Both hold each point once, however often the run was stopped: a start drops what lies
past the step that it goes on from, and tells a TensorBoard that is open to do so too.
Each point reaches the files in one write of its own, so that a reader, or a kill, sees
it whole or not at all. TensorFlow's own writer ignores a full disk between two flushes;
this one does not.
"""

import contextlib
import io
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator

import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_ndarray

from mnist_dist.errors import InputError
from mnist_dist.files.durable import (
    is_local,
    list_names,
    remove_unfinished,
    replacing,
    reporting_errors,
    sync,
)
from mnist_dist.run.directory import metrics_path

KINDS = ("train", "eval")  # of records, and the folders of their event files
_SO = "the checkpoints so far are intact"
_FRAME_BYTES = 16  # of an event in its file: its length and two checksums


class RunLog:
    """Writes the metrics of one run; only the chief has one."""

    def __init__(self, model_dir: str, *, resume_step: int = 0) -> None:
        """Drops every point past `resume_step`, then opens both for appending.

        Raises:
          InputError: `metrics.jsonl` is damaged before a record that is to stay.
          RunError: the disk is full, or a file cannot be read or written.
        """
        self._first_step = resume_step + 1
        self._eval_accuracies: dict[int, float | None] = {}
        self._texts: dict[str, str] = {}
        self._event_files: dict[str, _AppendedFile] = {}
        metrics = metrics_path(model_dir)
        with reporting_errors(model_dir, so=_SO):
            tf.io.gfile.makedirs(model_dir)
            remove_unfinished(model_dir, is_mine=True)
            lines, records, damaged = _read_records(metrics, last_step=resume_step)
            if damaged:
                logging.warning(
                    "%s: line %d was cut off and is dropped", metrics, damaged[0]
                )
            _rewrite(metrics, lines)
            for record in records:
                self._note(record)
            self._metrics_file = _AppendedFile(metrics)
            for kind in KINDS:
                directory = os.path.join(model_dir, kind)
                tf.io.gfile.makedirs(directory)
                remove_unfinished(directory, is_mine=True)
                # Nor the point of an evaluation that was withdrawn.
                is_point = kind == "train" or self.has_eval(resume_step)
                last_step = resume_step if is_point else resume_step - 1
                for path in _list_event_files(directory):
                    texts = _drop_events(path, last_step=last_step)
                    self._texts |= texts if kind == "train" else {}
                self._event_files[kind] = _AppendedFile(_new_event_path(directory))
                sync(directory)
            sync(model_dir)
        for kind in KINDS:
            self._write_event(kind, Event(file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            self._write_event(kind, Event(session_log=start, step=self._first_step))

    def write_train(self, *, step: int, epoch: float, **metrics: float) -> None:
        """Records the training metrics since the last time.

        Raises:
          RunError: the disk is full; likewise of all that writes.
        """
        self._write("train", step=step, epoch=epoch, metrics=metrics)

    def write_eval(
        self,
        *,
        step: int,
        epoch: float,
        loss: float,
        accuracy: float,
        split: str,
        num_examples: int,
    ) -> None:
        """Records an evaluation of `split`."""
        self._write(
            "eval",
            step=step,
            epoch=epoch,
            metrics={"loss": loss, "accuracy": accuracy},
            split=split,
            num_examples=num_examples,
        )

    def write_text(self, name: str, markdown: str) -> None:
        """Shows a text in TensorBoard, at the first step that it holds for.

        A start that goes on with the same text adds nothing; one with another text
        adds it, so that TensorBoard shows what changed and from which step on.
        """
        # What a command line held that is not UTF-8 is shown escaped.
        markdown = markdown.encode(errors="backslashreplace").decode()
        if self._texts.get(name) != markdown:
            self._texts[name] = markdown
            self._write_summary("train", text_pb(name, markdown), step=self._first_step)

    def has_eval(self, step: int) -> bool:
        """Whether this step was evaluated, by this process or an earlier one."""
        return step in self._eval_accuracies

    def eval_accuracy(self, step: int) -> float | None:
        """Returns the accuracy of a step's evaluation, if there was one."""
        return self._eval_accuracies.get(step)

    def last_eval_accuracy(self) -> float | None:
        """Returns the accuracy of the latest evaluation, if there was one."""
        return next(reversed(self._eval_accuracies.values()), None)

    def flush(self) -> None:
        """Returns when everything written would outlast a power failure."""
        for file in (self._metrics_file, *self._event_files.values()):
            file.flush()

    def close(self) -> None:
        """Flushes and closes; a second time it does nothing."""
        with contextlib.ExitStack() as each:  # also those after one that fails
            for file in (self._metrics_file, *self._event_files.values()):
                each.callback(file.close)

    def _write(
        self,
        kind: str,
        *,
        step: int,
        epoch: float,
        metrics: dict[str, float],
        **more: object,
    ) -> None:
        record = {"kind": kind, "step": step, "epoch": epoch, "time": time.time()}
        record |= {name: _finite(value) for name, value in metrics.items()} | more
        self._metrics_file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        summary = Summary()
        for name, value in metrics.items():
            summary.MergeFrom(scalar_pb(name, value))
        self._write_summary(kind, summary, step=step)
        self._note(record)

    def _note(self, record: dict) -> None:
        if record["kind"] == "eval":
            self._eval_accuracies[record["step"]] = record.get("accuracy")

    def _write_summary(self, kind: str, summary: Summary, *, step: int) -> None:
        self._write_event(kind, Event(summary=summary, step=step))

    def _write_event(self, kind: str, event: Event) -> None:
        event.wall_time = time.time()
        RecordWriter(self._event_files[kind]).write(event.SerializeToString())


class _AppendedFile:
    """A file that grows by whole records, each there for readers at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_closed = False
        if is_local(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        else:
            self._file = tf.io.gfile.GFile(path, "ab")

    def write(self, data: bytes) -> None:
        with reporting_errors(self._path, so=_SO):
            if is_local(self._path):
                while data:
                    data = data[self._file.write(data) :]
            else:
                self._file.write(data)
                self._file.flush()

    def flush(self) -> None:
        if is_local(self._path):
            with reporting_errors(self._path, so=_SO):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            try:
                self.flush()
            finally:
                self._file.close()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def check_records(model_dir: str, *, last_step: int) -> None:
    """Checks that a `RunLog` can go on from a step, and changes nothing.

    Raises:
      InputError: as `RunLog` does.
    """
    _read_records(metrics_path(model_dir), last_step=last_step)


def withdraw_evaluation(model_dir: str, step: int) -> None:
    """Takes a step's evaluation out of a run's records: its weights are others now.

    The run's next start takes the points out of TensorBoard's files too.

    Raises:
      InputError: the records are damaged.
      RunError: they cannot be written.
    """
    path = metrics_path(model_dir)
    lines, records, _ = _read_records(path, last_step=step)
    with reporting_errors(path, so=_SO):
        kept = [
            line
            for line, record in zip(lines, records, strict=True)
            if (record["kind"], record["step"]) != ("eval", step)
        ]
        _rewrite(path, kept)


def _read_records(
    path: str, *, last_step: int
) -> tuple[list[bytes], list[dict], list[int]]:
    """Reads `metrics.jsonl` up to a step: lines, what they say, numbers of damaged ones.

    What a kill or a power failure damaged was not yet followed by a checkpoint, and
    so lies after every record that is to stay.

    Raises:
      InputError: there is damage before one of these.
    """
    if not tf.io.gfile.exists(path):
        return [], [], []
    with tf.io.gfile.GFile(path, "rb") as file:
        lines = io.BytesIO(file.read()).readlines()
    kept: list[bytes] = []
    records: list[dict] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        record = _parse_record(line)
        if record is None:
            damaged.append(number)
        elif record["step"] <= last_step:
            if damaged:
                raise InputError(
                    f"{path}: line {damaged[0]} is not a metrics record: found "
                    f"{lines[damaged[0] - 1][:60]!r}"
                )
            kept.append(line.removesuffix(b"\n") + b"\n")
            records.append(record)
    return kept, records, damaged


def _rewrite(path: str, lines: list[bytes]) -> None:
    content = b"".join(lines)
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            if file.read() == content:
                return
        with replacing(path) as file:
            file.write(content)


def _parse_record(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = (
        isinstance(record, dict)
        and record.get("kind") in KINDS
        and isinstance(record.get("step"), int)
    )
    return record if is_record else None


def _list_event_files(directory: str) -> list[str]:
    """Returns what TensorBoard takes for event files, in its order."""
    names = [name for name in list_names(directory) if "tfevents" in name]
    paths = [os.path.join(directory, name) for name in names]
    return [p for p in paths if tf.io.gfile.exists(p) and not tf.io.gfile.isdir(p)]


def _new_event_path(directory: str) -> str:
    """Returns a path that sorts after all others: readers go from file to file."""
    stamps = [int(time.time())]
    for path in _list_event_files(directory):
        match = re.search(r"tfevents\.(\d+)", os.path.basename(path))
        stamps += [int(match[1]) + 1] if match else []
    name = f"{max(stamps):010}.{socket.gethostname()}.{os.getpid()}.v2"
    return os.path.join(directory, f"events.out.tfevents.{name}")


def _drop_events(path: str, *, last_step: int) -> dict[str, str]:
    """Rewrites an event file without the points past a step, if there are such.

    What is no point (a graph, the mark of a profile) stays.

    Returns:
      The latest of each text that stays, by its tag.
    """
    texts, num_stale, num_bytes = {}, 0, 0
    for data, event in _load_events(path):
        num_bytes += len(data) + _FRAME_BYTES
        if _is_stale(event, last_step):
            num_stale += 1
            continue
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "text":
                for text in make_ndarray(value.tensor).reshape(-1)[:1]:
                    texts[value.tag] = text.decode(errors="replace")
    if num_bytes < tf.io.gfile.stat(path).length:
        logging.warning(
            "%s is damaged from byte %d on; the events before it are kept",
            path,
            num_bytes,
        )
    if num_stale:
        with replacing(path) as file:
            writer = RecordWriter(file)
            for data, event in _load_events(path):
                if not _is_stale(event, last_step):
                    writer.write(data)
    return texts


def _load_events(path: str) -> Iterator[tuple[bytes, Event]]:
    """Reads events as they lie in the file, up to its end or its first damage."""
    with contextlib.suppress(DecodeError):
        for data in RawEventFileLoader(path).Load():
            yield data, Event.FromString(data)


def _is_stale(event: Event, last_step: int) -> bool:
    return event.HasField("summary") and event.step > last_step
