"""TensorBoard's event files: written point by point, and cut back to a step.

TensorBoard reads all event files of a folder as one curve, in the order of their
names. Each start of a run adds a file that sorts after the others.
"""

import contextlib
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping

import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from mnist_dist.files.appended import AppendedFile
from mnist_dist.files.durable import (
    list_names,
    remove_unfinished,
    replacing,
    reporting_errors,
    sync,
)
from mnist_dist.files.local import check_regular, kind_at

_VERSION = "brain.Event:2"  # the first event of a file
_FRAME_BYTES = 16  # of an event in its file: its length and two checksums


class EventFileWriter:
    """Writes an event file for each kind of metrics; a `MetricWriter`."""

    def __init__(
        self, model_dir: str, *, last_steps: Mapping[str, int], first_step: int, so: str
    ) -> None:
        """Drops every point past the step that a run goes on from, and opens new files.

        A TensorBoard that is open is told to drop them too.

        Args:
          model_dir: of the run.
          last_steps: for each kind, which is also its folder, the last step that stays.
          first_step: from which on TensorBoard drops what it has read before.
          so: what an error leaves intact, for its message.

        Raises:
          InputError: something with the name of an event file cannot be one.
          tf.errors.OpError, OSError: a file cannot be read or written.
          RunError: the disk is full.
        """
        self._so = so
        self._held: dict[tuple[str, str], Summary.Value] = {}
        self._paths: dict[str, str] = {}
        self._files: dict[str, AppendedFile] = {}
        for kind, last_step in last_steps.items():
            directory = os.path.join(model_dir, kind)
            tf.io.gfile.makedirs(directory)
            remove_unfinished(directory, is_mine=True)
            for path in _list_event_files(directory):
                found = _drop_events(path, last_step=last_step)
                self._held |= {(kind, tag): value for tag, value in found.items()}
            self._paths[kind] = _new_event_path(directory)
            self._files[kind] = AppendedFile(self._paths[kind], so=so)
            sync(directory)
        start = SessionLog(status=SessionLog.START)
        now = time.time()
        for kind in last_steps:
            self._write_event(kind, Event(file_version=_VERSION, wall_time=now))
            self._write_event(
                kind, Event(session_log=start, step=first_step, wall_time=now)
            )

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
        """Adds a point to the curve of each value."""
        summary = Summary()
        for name, value in scalars.items():
            summary.MergeFrom(scalar_pb(name, value))
        event = Event(summary=summary, step=step, wall_time=wall_time)
        self._write_event(kind, event)

    def write_text(self, name: str, markdown: str, *, step: int) -> None:
        """Shows a text at the first step that it holds for.

        A start that goes on with the same text adds nothing; one with another text
        adds it, so that TensorBoard shows what changed and from which step on.
        """
        summary = text_pb(name, markdown)
        (value,) = summary.value
        if self._held.get(("train", value.tag)) != value:
            self._held["train", value.tag] = value
            self.write_summary("train", summary, step=step)

    def write_session(self, kind: str, summary: Summary, *, step: int) -> None:
        """Shows the settings of a run in the table of the plugin HParams.

        TensorBoard takes them from the first event that tells them, so earlier ones that
        differ are dropped. One that is open shows what it has read before.
        """
        (value,) = summary.value
        earlier = self._held.get((kind, value.tag))
        if earlier == value:
            return
        self._held[kind, value.tag] = value
        self.write_summary(kind, summary, step=step)
        if earlier is not None:
            own = self._paths[kind]
            with reporting_errors(own, so=self._so):
                for path in _list_event_files(os.path.dirname(own)):
                    if path != own:
                        _rewrite(path, lambda event: not _tells(event, value.tag))

    def write_summary(self, kind: str, summary: Summary, *, step: int) -> None:
        """Adds what TensorBoard alone can show, as an image or a histogram."""
        event = Event(summary=summary, step=step, wall_time=time.time())
        self._write_event(kind, event)

    def flush(self) -> None:
        """Returns when everything written would outlast a power failure."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Flushes and closes; a second time it does nothing."""
        with contextlib.ExitStack() as each:  # also those after one that fails
            for file in self._files.values():
                each.callback(file.close)

    def _write_event(self, kind: str, event: Event) -> None:
        RecordWriter(self._files[kind]).write(event.SerializeToString())


def _list_event_files(directory: str) -> list[str]:
    """Returns what TensorBoard takes for event files, in its order; but for links.

    Raises:
      InputError: one is a named pipe or a device, which would be waited for for ever.
    """
    found = []
    for name in list_names(directory):
        path = os.path.join(directory, name)
        kind = kind_at(path)
        if "tfevents" not in name or kind in ("", "a folder", "a link"):
            continue
        check_regular(path)
        found.append(path)
    return found


def _new_event_path(directory: str) -> str:
    """Returns a path that sorts after all others: readers go from file to file."""
    stamps = [int(time.time())]
    for path in _list_event_files(directory):
        match = re.search(r"tfevents\.(\d{1,10})\.", os.path.basename(path))
        stamps += [int(match[1]) + 1] if match else []
    name = f"{max(stamps):010}.{socket.gethostname()}.{os.getpid()}.v2"
    return os.path.join(directory, f"events.out.tfevents.{name}")


def _drop_events(path: str, *, last_step: int) -> dict[str, Summary.Value]:
    """Rewrites an event file without the points past a step, if there are such.

    What is no point (a graph, the mark of a profile) stays.

    Returns:
      By its tag, the latest of each text, and the first settings of the run, that stay.
    """
    held: dict[str, Summary.Value] = {}
    num_stale = num_bytes = 0
    for data, event in _load_events(path):
        num_bytes += len(data) + _FRAME_BYTES
        if _is_stale(event, last_step):
            num_stale += 1
            continue
        for value in event.summary.value:
            plugin = value.metadata.plugin_data.plugin_name
            if plugin == "text" or (plugin == "hparams" and value.tag not in held):
                held[value.tag] = value
    if num_bytes < tf.io.gfile.stat(path).length:
        logging.warning(
            "%s is damaged from byte %d on; the events before it are kept",
            path,
            num_bytes,
        )
    if num_stale:
        _rewrite(path, lambda event: not _is_stale(event, last_step))
    return held


def _rewrite(path: str, keep: Callable[[Event], bool]) -> None:
    """Drops events from a file, which is whole at any moment."""
    with replacing(path) as file:
        writer = RecordWriter(file)
        for data, event in _load_events(path):
            if keep(event):
                writer.write(data)


def _load_events(path: str) -> Iterator[tuple[bytes, Event]]:
    """Reads events as they lie in the file, up to its end or its first damage."""
    records = itertools.islice(RawEventFileLoader(path).Load(), _count_records(path))
    with contextlib.suppress(DecodeError):
        for data in records:
            yield data, Event.FromString(data)


def _count_records(path: str) -> int:
    """Counts the records of a file up to its end, or to one that cannot be in it.

    TensorFlow allocates whatever length a record claims, before it reads it.
    """
    size, offset, count = tf.io.gfile.stat(path).length, 0, 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while size - offset >= _FRAME_BYTES:
            file.seek(offset)
            (length,) = struct.unpack("<Q", file.read(8))
            offset += length + _FRAME_BYTES
            if offset > size:
                break
            count += 1
    return count


def _tells(event: Event, tag: str) -> bool:
    return any(value.tag == tag for value in event.summary.value)


def _is_stale(event: Event, last_step: int) -> bool:
    return event.HasField("summary") and event.step > last_step
