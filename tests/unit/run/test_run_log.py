import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from full_disk import file_size_limit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator,
)
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c
from tensorflow import make_ndarray

from mnist_dist.errors import InputError, RunError
from mnist_dist.files import durable
from mnist_dist.run.lock import open_for_writing
from mnist_dist.run.run_log import RunLog

NO_LIMIT = {"scalars": 0, "text": 0}  # points that TensorBoard is to keep


def write(log, steps):
    for step in steps:
        log.write_train(
            step=step, epoch=step / 10, loss=1 / step, accuracy=0.5, learning_rate=0.1
        )
        if step % 2 == 0:
            log.write_eval(
                step=step,
                epoch=step / 10,
                loss=2 / step,
                accuracy=0.25,
                split="test",
                num_examples=8,
            )


def write_run(path, *, steps, resume_step=0):
    log = RunLog(str(path), resume_step=resume_step)
    write(log, steps)
    log.close()


def accumulate(path):
    return EventAccumulator(str(path), tensor_size_guidance=NO_LIMIT).Reload()


def tensors(accumulator):
    """Every point that TensorBoard has of one folder, in its order."""
    return {
        tag: [(e.step, make_ndarray(e.tensor_proto)) for e in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def points(path):
    """Every curve of a run, as TensorBoard reads it."""
    return {
        (kind, tag): [(step, float(value)) for step, value in values]
        for kind in ("train", "eval")
        for tag, values in tensors(accumulate(path / kind)).items()
        if tag != "settings"
    }


def texts(path):
    found = tensors(accumulate(path / "train"))["settings"]
    return [(step, value.item().decode()) for step, value in found]


def without_times(path):
    records = [json.loads(line) for line in (path / "metrics.jsonl").open()]
    assert all(record.pop("time") > 0 for record in records)
    return records


def event_files(path):
    return sorted(path.glob("*/*tfevents*"))


def contents(path):
    """Every file below a folder, with what it holds and when it was made."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return {p: (p.read_bytes(), p.stat().st_ino) for p in files}


def copy(remote, path):
    """Copies a run to where TensorBoard and others find it."""
    for folder, _, names in tf.io.gfile.walk(remote):
        target = f"{path}{folder.removeprefix(remote)}"
        tf.io.gfile.makedirs(target)
        for name in names:
            tf.io.gfile.copy(f"{folder}/{name}", f"{target}/{name}")


def assert_same_log(found, expected):
    assert without_times(found) == without_times(expected)
    assert points(found) == points(expected)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed")
    write_run(path, steps=range(1, 9))
    return path


def test_tensorboard_and_the_records_hold_every_point(undisturbed):
    found = points(undisturbed)
    assert found["train", "loss"] == [(s, np.float32(1 / s)) for s in range(1, 9)]
    assert found["eval", "loss"] == [(s, np.float32(2 / s)) for s in (2, 4, 6, 8)]
    assert {tag for kind, tag in found if kind == "eval"} == {"loss", "accuracy"}
    records = without_times(undisturbed)
    assert [r["loss"] for r in records if r["kind"] == "train"] == [
        1 / s for s in range(1, 9)
    ]


def test_events_are_those_that_tensorflow_writes(undisturbed, tmp_path):
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.scalar("loss", 1.0, step=1)
    theirs, ours = accumulate(tmp_path), accumulate(undisturbed / "train")
    assert tensors(ours)["loss"][0] == tensors(theirs)["loss"][0]
    assert ours.SummaryMetadata("loss") == theirs.SummaryMetadata("loss")


def test_resumed_log_equals_an_undisturbed_one(undisturbed, tmp_path):
    write_run(tmp_path, steps=range(1, 7))
    log = RunLog(str(tmp_path), resume_step=4)
    assert log.has_eval(4)
    assert not log.has_eval(6)
    assert log.last_eval_accuracy() == 0.25
    write(log, range(5, 9))
    log.close()
    log.close()
    assert_same_log(tmp_path, undisturbed)


def test_a_run_that_starts_anew_has_no_evaluation(tmp_path):
    write_run(tmp_path, steps=range(1, 5))
    log = RunLog(str(tmp_path))
    assert log.last_eval_accuracy() is None
    assert not log.has_eval(2)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert points(tmp_path) == {}


def test_open_tensorboard_drops_stale_points_too(tmp_path):
    write_run(tmp_path, steps=range(1, 7))
    shown = accumulate(tmp_path / "train")
    assert [e.step for e in shown.Tensors("loss")] == [1, 2, 3, 4, 5, 6]
    write_run(tmp_path, steps=[5], resume_step=4)
    assert [e.step for e in shown.Reload().Tensors("loss")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("host", ["aaa", "zzz"])
def test_new_file_is_the_last_even_if_the_clock_went_back(
    undisturbed, tmp_path, monkeypatch, host
):
    write_run(tmp_path, steps=range(1, 5))
    monkeypatch.setattr(time, "time", lambda: 1.0)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    write_run(tmp_path, steps=range(5, 7), resume_step=4)
    write_run(tmp_path, steps=range(7, 9), resume_step=6)
    assert_same_log(tmp_path, undisturbed)  # the order of the points included


def test_nothing_is_rewritten_where_nothing_is_stale(tmp_path):
    write_run(tmp_path, steps=range(1, 5))
    for _ in range(2):
        before = contents(tmp_path)
        RunLog(str(tmp_path), resume_step=4).close()
        after = contents(tmp_path)
        assert {path: after[path] for path in before} == before
    before = {path: before[path] for path in before if b"loss" in before[path][0]}
    assert len(before) == 3
    RunLog(str(tmp_path), resume_step=3).close()
    after = contents(tmp_path)
    assert all(after[path] != before[path] for path in before)


def test_rewritten_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    write_run(tmp_path, steps=range(1, 5))
    synced, replaced, sync, rename = set(), [], os.fsync, tf.io.gfile.rename

    def note_sync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def note_rename(source, target, overwrite):
        assert os.stat(source).st_ino in synced
        assert os.stat(source).st_size > 0
        rename(source, target, overwrite)
        replaced.append(target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(tf.io.gfile, "rename", note_rename)
    RunLog(str(tmp_path), resume_step=3).close()
    assert len(replaced) == 3
    assert synced >= {os.stat(os.path.dirname(path)).st_ino for path in replaced}


def test_what_is_no_point_survives(tmp_path):
    with tf.summary.create_file_writer(str(tmp_path / "train")).as_default():
        tf.summary.graph(
            tf.function(lambda: tf.constant(1)).get_concrete_function().graph
        )
    mark = tmp_path / "train" / "events.out.tfevents.1.host.profile-empty"
    with tf.io.TFRecordWriter(str(mark)) as writer:
        event = tf.compat.v1.Event(wall_time=1.0, file_version="brain.Event:2")
        writer.write(event.SerializeToString())
    profile = tmp_path / "train" / "plugins" / "profile" / "1" / "host.xplane.pb"
    profile.parent.mkdir(parents=True)
    profile.write_bytes(b"profile")
    before = mark.read_bytes()
    write_run(tmp_path, steps=range(1, 7))
    write_run(tmp_path, steps=[], resume_step=2)
    write_run(tmp_path, steps=[])
    assert accumulate(tmp_path / "train").Tags()["graph"]
    assert mark.read_bytes() == before
    assert profile.read_bytes() == b"profile"


def test_text_is_written_when_it_is_new_or_changed(tmp_path):
    def start(text, *, resume_step):
        log = RunLog(str(tmp_path), resume_step=resume_step)
        log.write_text("settings", text)
        write(log, range(resume_step + 1, resume_step + 3))
        log.close()

    start("first", resume_step=0)
    start("first", resume_step=2)
    assert texts(tmp_path) == [(1, "first")]
    start("second", resume_step=4)
    start("second", resume_step=6)
    assert texts(tmp_path) == [(1, "first"), (5, "second")]
    # Back to before the change: it no longer holds for any step.
    start("first", resume_step=4)
    assert texts(tmp_path) == [(1, "first")]
    start("third \udcff", resume_step=0)
    assert texts(tmp_path) == [(1, "third \\udcff")]


def test_reader_sees_each_point_as_soon_as_it_is_written(tmp_path):
    log = RunLog(str(tmp_path))
    for step in (1, 2, 3):
        write(log, [step])
        assert without_times(tmp_path)[-1]["step"] == step
        assert points(tmp_path)["train", "loss"][-1][0] == step


def test_each_point_is_one_write_whatever_its_length(tmp_path):
    log = RunLog(str(tmp_path))

    def num_writes():
        return int(
            re.search(r"syscw: (\d+)", Path("/proc/thread-self/io").read_text())[1]
        )

    before = num_writes()
    log.write_text("settings", "long " * 5000)
    assert num_writes() == before + 1
    write(log, [1])
    assert num_writes() == before + 3  # of the record, and of the event
    log.close()


def test_log_on_a_path_with_a_scheme_is_that_of_a_local_one(undisturbed, tmp_path):
    path = f"ram://{tmp_path.name}/run"
    write_run(path, steps=range(1, 7))
    log = RunLog(path, resume_step=4)
    assert log.has_eval(4)
    assert not log.has_eval(6)
    write(log, range(5, 9))
    copy(path, tmp_path)  # while it is open: each point is there at once
    assert_same_log(tmp_path, undisturbed)
    log.close()
    log.close()


def test_flush_has_the_disk_keep_all_that_was_written(tmp_path, monkeypatch):
    log = RunLog(str(tmp_path))
    write(log, [1, 2])
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))
    log.flush()
    expected = [tmp_path / "metrics.jsonl", *event_files(tmp_path)]
    assert synced == {path.stat().st_ino for path in expected}


@pytest.mark.parametrize(
    "tail", ['{"kind": "train", "st', "\0" * 999, '{"a": 1}\n\0\n']
)
def test_records_that_a_kill_cut_short_are_dropped(undisturbed, tmp_path, tail):
    write_run(tmp_path, steps=range(1, 7))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    write_run(tmp_path, steps=range(7, 9), resume_step=6)
    assert_same_log(tmp_path, undisturbed)


def test_last_record_without_its_newline_is_not_glued_to_the_next(
    undisturbed, tmp_path
):
    write_run(tmp_path, steps=range(1, 7))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    write_run(tmp_path, steps=range(7, 9), resume_step=6)
    assert_same_log(tmp_path, undisturbed)


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage",
        b"[" * 100_000,
        b'{"kind": "train", "step": true}',
        b'{"kind": "train", "step": -1}',
        b'{"kind": "eval", "step": 1, "accuracy": "high"}',
        b'{"kind": "eval", "step": 1, "accuracy": 1e9}',
        b'{"kind": "train", "step": 1, "loss": NaN}',
        b'{"kind": "train", "step": 1' + b"0" * 5000 + b"}",
    ],
)
def test_old_damage_does_not_stop_a_run_and_is_kept(tmp_path, caplog, damage):
    first, second = ({"kind": "train", "step": step} for step in (1, 2))
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(first).encode(), damage, json.dumps(second).encode()]
    for number, aside in enumerate(
        ["metrics.jsonl.damaged", "metrics.jsonl.damaged-2"]
    ):
        path.write_bytes(b"\n".join(lines))
        write_run(tmp_path, steps=[], resume_step=5)
        assert path.read_bytes() == lines[0] + b"\n" + lines[2] + b"\n"
        assert (tmp_path / aside).read_bytes() == b"\n".join(lines)
        message = caplog.records[number].message
        assert f"{path}: line 2 is no record and is dropped: b'" in message
        assert message.endswith(f"the file as it was is {tmp_path / aside} now")
        assert len(message) < 1000


def test_damage_after_what_stays_is_dropped(tmp_path):
    first = json.dumps({"kind": "train", "step": 1})
    (tmp_path / "metrics.jsonl").write_text(f'{first}\ngarbage\n{{"kind": "train"')
    write_run(tmp_path, steps=[], resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == first + "\n"
    assert not list(tmp_path.glob("*damaged*"))


@pytest.mark.parametrize("cut", [1, 4, 15, 40])
def test_event_file_with_half_a_record_is_kept_up_to_it(tmp_path, caplog, cut):
    write_run(tmp_path, steps=range(1, 7))
    (path,) = (p for p in event_files(tmp_path) if p.parent.name == "train")
    os.truncate(path, path.stat().st_size - cut)
    write_run(tmp_path, steps=range(7, 9), resume_step=6)
    steps = [step for step, _ in points(tmp_path)["train", "loss"]]
    assert steps == [1, 2, 3, 4, 5, 7, 8]
    assert f"{path} is damaged from byte" in caplog.text


def test_event_file_with_a_flipped_bit_or_without_any_event_is_no_hindrance(
    tmp_path, caplog
):
    write_run(tmp_path, steps=range(1, 7))
    (path,) = (p for p in event_files(tmp_path) if p.parent.name == "train")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    path.with_name("events.out.tfevents.5").write_bytes(b"garbage" * 9)
    path.with_name("events.out.tfevents.6").write_bytes(b"")
    write_run(tmp_path, steps=[], resume_step=6)
    assert path.read_bytes() == data  # what lies after the damage may be salvaged
    assert len(caplog.records) == 2
    write_run(tmp_path, steps=range(2, 4), resume_step=1)
    assert [step for step, _ in points(tmp_path)["train", "loss"]] == [1, 2, 3]


def test_files_that_are_no_event_files_are_no_hindrance(tmp_path, caplog):
    write_run(tmp_path, steps=range(1, 7))
    train = tmp_path / "train"
    (train / "tfevents.dangling").symlink_to("nothing")
    (train / "tfevents.folder").mkdir()
    with tf.io.TFRecordWriter(str(train / "tfevents.records")) as writer:
        writer.write(b"\xff not an event")
    text = text_pb("settings", "x")
    text.value[0].tensor.string_val[0] = b"\xff"
    empty = text_pb("empty", np.array([], np.str_))
    with tf.io.TFRecordWriter(str(train / "tfevents.texts")) as writer:
        for summary in (text, empty):
            writer.write(Event(step=1, summary=summary).SerializeToString())
    write_run(tmp_path, steps=[], resume_step=6)
    assert f"{train}/tfevents.records is damaged from byte 0" in caplog.text
    assert len(caplog.records) == 1


def test_event_file_that_claims_what_it_cannot_hold_is_damaged(tmp_path, caplog):
    write_run(tmp_path, steps=range(1, 4))
    (path,) = (p for p in event_files(tmp_path) if p.parent.name == "train")
    whole = path.stat().st_size
    with path.open("ab") as file:
        RecordWriter(file).write(b"x" * 100)
    data = bytearray(path.read_bytes())
    claim = struct.pack("<Q", 1 << 40)
    data[whole : whole + 12] = claim + struct.pack("<I", masked_crc32c(claim))
    path.write_bytes(data)
    write_run(tmp_path, steps=range(2, 4), resume_step=1)
    assert f"{path} is damaged from byte {whole} on" in caplog.text
    assert [step for step, _ in points(tmp_path)["train", "loss"]] == [1, 2, 3]


def make_pipe(path):
    os.mkfifo(path)


def make_link_to_device(path):
    path.symlink_to("/dev/zero")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("metrics.jsonl", make_pipe, "a named pipe"),
        ("metrics.jsonl", make_link_to_device, "a device"),
        ("train/events.out.tfevents.1.v2", make_pipe, "a named pipe"),
        ("eval/events.out.tfevents.1.v2", make_socket, "a socket"),
    ],
)
def test_what_is_no_file_is_refused_as_what_it_is(tmp_path, name, make, kind):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: found {kind}, expected a regular"):
        RunLog(str(tmp_path))


def test_records_are_not_written_through_a_link(tmp_path):
    outside = tmp_path / "precious"
    outside.write_text("")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(
        InputError, match=r"metrics.jsonl: found a link, expected a reg"
    ):
        write_run(run, steps=[1])
    assert outside.read_text() == ""


@pytest.mark.parametrize(
    ("name", "do"), [("metrics.jsonl", os.remove), ("train", shutil.rmtree)]
)
def test_files_that_go_in_mid_run_are_missed_at_once(tmp_path, name, do):
    log = RunLog(str(tmp_path))
    write(log, [1])
    do(tmp_path / name)
    for act in (lambda: write(log, [2]), log.flush):
        with pytest.raises(RunError, match=rf"{name}\S* was moved or deleted while it"):
            act()
    with pytest.raises(RunError, match=r"was moved or deleted"):
        log.close()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_run_that_is_moved_is_written_no_more(tmp_path, is_replaced):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    lock = open_for_writing(str(run))
    log = RunLog(str(run), lock=lock)
    write(log, [1])
    run.rename(elsewhere)
    if is_replaced:
        open_for_writing(str(run)).close()
        write_run(run, steps=[1])
    before = contents(tmp_path)
    for act in (lambda: write(log, [2]), log.flush, lambda: log.write_text("a", "b")):
        with pytest.raises(
            RunError, match=rf"{run} was moved or deleted while the run"
        ):
            act()
    with pytest.raises(RunError):
        log.close()
    assert contents(tmp_path) == before
    assert is_replaced or not run.exists()


def test_record_without_end_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"[" * 100_000 + b"\n")
    write_run(tmp_path, steps=[1])
    assert [record["step"] for record in without_times(tmp_path)] == [1]


def test_values_that_are_not_finite_stay_strict_json(tmp_path):
    log = RunLog(str(tmp_path))
    log.write_train(step=1, epoch=0.1, loss=float("nan"))
    log.close()
    assert without_times(tmp_path)[0]["loss"] is None
    ((step, value),) = points(tmp_path)["train", "loss"]
    assert step == 1
    assert np.isnan(value)


def test_model_dir_with_signs_of_a_pattern(undisturbed, tmp_path):
    path = tmp_path / "a[b]*?"
    write_run(path, steps=range(1, 7))
    write_run(path, steps=range(5, 9), resume_step=4)
    for kind in ("train", "eval"):
        assert len(list((path / kind).iterdir())) == 2
    assert without_times(path) == without_times(undisturbed)


@pytest.mark.parametrize("limit", [1000, 1500, 3000])
def test_full_disk_is_an_error_and_costs_nothing_that_was_flushed(
    undisturbed, tmp_path, limit
):
    write_run(tmp_path, steps=range(1, 3))
    log = RunLog(str(tmp_path), resume_step=2)
    written = [1, 2]

    def write_until_full():
        for step in range(3, 100):
            write(log, [step])
            written.append(step)

    with (
        file_size_limit(limit),
        pytest.raises(RunError, match=r"tfevents\S* cannot be written|metrics.jsonl "),
    ):
        write_until_full()
    log.close()
    assert len(written) > 2
    # What was taken without an error is there, in both.
    whole = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    records = [r for r in map(json.loads, whole) if r["kind"] == "train"]
    assert [r["step"] for r in records][: len(written)] == written
    assert [s for s, _ in points(tmp_path)["train", "loss"]][: len(written)] == written
    write_run(tmp_path, steps=range(3, 9), resume_step=2)
    assert_same_log(tmp_path, undisturbed)


@pytest.mark.parametrize("limit", [0, 300])
def test_full_disk_at_a_restart_costs_nothing(undisturbed, tmp_path, limit):
    write_run(tmp_path, steps=range(1, 7))
    before = contents(tmp_path)
    with file_size_limit(limit), pytest.raises(RunError, match="cannot be written"):
        RunLog(str(tmp_path), resume_step=4)
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert not list(tmp_path.rglob(".writing*"))
    write_run(tmp_path, steps=range(5, 9), resume_step=4)
    assert_same_log(tmp_path, undisturbed)


def test_sync_that_fails_is_an_error(tmp_path, monkeypatch):
    log = RunLog(str(tmp_path))
    write(log, [1])

    def fail(descriptor):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RunError, match=r"metrics.jsonl cannot .*: Disk quota"):
            log.flush()
        with pytest.raises(RunError, match="Disk quota"):
            log.close()
    records, events = log._writers
    files = [records._file, *events._files.values()]
    assert all(file._file.closed for file in files)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


@contextlib.contextmanager
def killed_at_change(number):
    """Ends the process, so to speak, before its n-th change of names on the disk."""
    count, rename = 0, tf.io.gfile.rename

    def count_and_rename(source, target, overwrite):
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        rename(source, target, overwrite)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(tf.io.gfile, "rename", count_and_rename)
        # Nor is what it leaves removed.
        patch.setattr(durable, "remove", lambda path: None)
        yield


def sizes(path):
    return {p: p.stat().st_size for p in path.rglob("*") if p.is_file()}


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lives=st.lists(
        st.tuples(
            st.integers(0, 3),  # steps before the checkpoint, if it comes to one
            st.integers(0, 4),  # steps after it, lost at the end of this life
            st.booleans(),  # a power failure, which loses what was not flushed
            st.integers(0, 4),  # the start before is killed at this change of names
            st.floats(0, 1),  # of what was not flushed is kept
        ),
        max_size=4,
    )
)
def test_any_sequence_of_kills_and_resumes_equals_an_undisturbed_run(
    undisturbed, lives
):
    with tempfile.TemporaryDirectory() as folder:
        path, saved = Path(folder), 0
        for before, after, is_power_failure, change, part in lives:
            with killed_at_change(change):
                RunLog(folder, resume_step=saved)
            log = RunLog(folder, resume_step=saved)
            log.write_text("settings", "same")
            checkpoint = min(saved + before, 8)
            write(log, range(saved + 1, checkpoint + 1))
            if before:
                log.flush()
                saved = checkpoint
            flushed = sizes(path)
            write(log, range(checkpoint + 1, min(checkpoint + after, 8) + 1))
            if is_power_failure and before:
                for file, size in sizes(path).items():
                    safe = flushed[file]
                    os.truncate(file, safe + int(part * (size - safe)))
        log = RunLog(folder, resume_step=saved)
        log.write_text("settings", "same")
        write(log, range(saved + 1, 9))
        log.close()
        assert_same_log(path, undisturbed)
        assert texts(path) == [(1, "same")]
        assert not list(path.rglob(".writing*"))


def test_nothing_is_lost_or_double_after_sigkill_at_any_moment(tmp_path):
    saved, rng = 0, random.Random(1)
    for _ in range(8):
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            with contextlib.suppress(BaseException):
                log = RunLog(str(tmp_path), resume_step=saved)
                for step in range(saved + 1, 100_000):
                    log.write_train(step=step, epoch=0.0, loss=1 / step)
                    if step % 10 == 0:
                        log.flush()
                        os.write(writer, b"%d\n" % step)
            os._exit(1)
        os.close(writer)
        with open(reader) as saves:
            saved = int(saves.readline())
            time.sleep(rng.uniform(0, 0.1))
            os.kill(process, signal.SIGKILL)
            saved = int((saves.read().splitlines() or [saved])[-1])
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    write_run(tmp_path, steps=[], resume_step=saved)
    steps = list(range(1, saved + 1))
    assert [r["step"] for r in without_times(tmp_path)] == steps
    found = points(tmp_path)["train", "loss"]
    assert found == [(step, float(np.float32(1 / step))) for step in steps]


class Tracker:
    """A user's own writer: it has the methods, and no base class."""

    def __init__(self):
        self.calls = []

    def write_scalars(self, kind, scalars, *, step, epoch, wall_time, details):
        assert abs(time.time() - wall_time) < 60
        self.calls.append((kind, dict(scalars), step, epoch, dict(details)))

    def write_text(self, name, markdown, *, step):
        self.calls.append((name, markdown, step))

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")


def test_a_third_writer_gets_what_the_other_two_get(tmp_path):
    tracker = Tracker()
    log = RunLog(str(tmp_path), resume_step=4, writers=[tracker])
    log.write_text("settings", "text \udcff")
    log.write_train(step=5, epoch=0.5, loss=float("inf"), accuracy=0.5)
    log.write_eval(
        step=5, epoch=0.5, loss=2.0, accuracy=0.25, split="test", num_examples=8
    )
    log.flush()
    log.close()
    split = {"split": "test", "num_examples": 8}
    assert tracker.calls == [
        ("settings", "text \\udcff", 5),
        ("train", {"loss": float("inf"), "accuracy": 0.5}, 5, 0.5, {}),
        ("eval", {"loss": 2.0, "accuracy": 0.25}, 5, 0.5, split),
        "flush",
        "close",
    ]
