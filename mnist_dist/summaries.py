"""The two records of a run: `metrics.jsonl`, and TensorBoard's event files.

Both hold each point once, however often the run was stopped: a start drops what lies
past the step that it goes on from. A TensorBoard that is already open shows dropped
points until it is reloaded from scratch.
"""

import json
import math
import os
import time

import tensorflow as tf
from absl import logging

from mnist_dist.errors import InputError


class RunLog:
    """Writes the metrics of one run; only the chief has one."""

    def __init__(self, model_dir: str, *, resume_step: int = 0) -> None:
        """Drops every record past `resume_step`, then opens both for appending."""
        tf.io.gfile.makedirs(model_dir)
        self._path = os.path.join(model_dir, "metrics.jsonl")
        self._records = [
            r for r in _load_records(self._path) if 0 < r["step"] <= resume_step
        ]
        _save_atomically(self._path, "".join(map(_to_line, self._records)))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        for kind in ("train", "eval"):
            directory = os.path.join(model_dir, kind)
            tf.io.gfile.makedirs(directory)
            _drop_events(directory, resume_step=resume_step)
            self._writers[kind] = tf.summary.create_file_writer(directory)

    def write_train(self, *, step: int, epoch: float, **metrics: float) -> None:
        """Records the training metrics since the last time."""
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
        """Shows a text in TensorBoard, once for each start of the run."""
        with self._writers["train"].as_default():
            tf.summary.text(name, markdown, step=0)

    def has_eval(self, step: int) -> bool:
        """Whether this step was evaluated, by this process or an earlier one."""
        return any(r["kind"] == "eval" and r["step"] == step for r in self._records)

    def last_eval_accuracy(self) -> float | None:
        """Returns the accuracy of the latest evaluation, if there was one."""
        accuracies = [r["accuracy"] for r in self._records if r["kind"] == "eval"]
        return accuracies[-1] if accuracies else None

    def flush(self) -> None:
        """Returns when everything written is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()
        for writer in self._writers.values():
            writer.close()

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
        self._records.append(record)
        self._file.write(_to_line(record))
        with self._writers[kind].as_default():
            for name, value in metrics.items():
                tf.summary.scalar(name, value, step=step)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _to_line(record: dict) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _load_records(path: str) -> list[dict]:
    """Reads the records; a line cut short by a kill can only be the last one.

    Raises:
      InputError: another line is not a record.
    """
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path, "rb") as file:
        lines = file.read().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append(record | {"step": int(record["step"])})
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise InputError(
                f"{path}: line {number} is not a metrics record: found {line[:60]!r}"
            ) from error
    return records


def _save_atomically(path: str, text: str) -> None:
    with open(f"{path}.writing", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.writing", path)


def _drop_events(directory: str, *, resume_step: int) -> None:
    """Rewrites a directory's events as one file without those past `resume_step`.

    Texts go too (their step is 0): each start writes its own.
    """
    old = sorted(tf.io.gfile.glob(os.path.join(directory, "events.out.tfevents.*")))
    kept: dict[tuple[str, int], bytes] = {}
    for path in old:
        try:
            for record in tf.data.TFRecordDataset(path):
                data = record.numpy()
                event = tf.compat.v1.Event.FromString(data)
                for value in event.summary.value:
                    if 0 < event.step <= resume_step:
                        # The latest wins, should a kill have left a point twice.
                        kept[value.tag, event.step] = data
        except tf.errors.DataLossError:
            logging.warning("%s: its end was cut off; the rest is kept", path)
    if kept:
        staging = os.path.join(directory, ".writing")
        with tf.io.TFRecordWriter(staging) as writer:
            writer.write(
                tf.compat.v1.Event(
                    wall_time=time.time(), file_version="brain.Event:2"
                ).SerializeToString()
            )
            for data in sorted(
                kept.values(), key=lambda d: tf.compat.v1.Event.FromString(d).step
            ):
                writer.write(data)
        name = f"events.out.tfevents.{int(time.time())}.kept.{os.getpid()}"
        tf.io.gfile.rename(staging, os.path.join(directory, name), overwrite=True)
        old = [path for path in old if os.path.basename(path) != name]
    for path in old:
        tf.io.gfile.remove(path)
