"""The files of a run may hold anything: it is read, or refused in one line.

FUZZ_EXAMPLES=100000 tries so many of each, which takes minutes.
"""

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_factory import create_run, save_data_set
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import printable
from mnist_dist.inference.trained_model import create_inference_state
from mnist_dist.run.config import (
    check_settings,
    is_restart,
    load_patience,
    load_run_config,
)
from mnist_dist.run.event_files import _load_events
from mnist_dist.run.history import list_run_checkpoints
from mnist_dist.run.run_log import RunLog
from mnist_dist.training.options import TrainingOptions
from mnist_dist.training.recorded_options import take_recorded

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    report_multiple_bugs=False,
    deadline=20_000,  # milliseconds: a hang
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = [-1, 0, 1, 10**400, 2**63, 1e308, 0.5, True, "", "float32", "a:b", "../x"]
ODD += ["\x1b[31m", "nul\0", "é" * 300, "/dev/zero", [], [0, 0, 0], [28, 28]]
ODD += [[1e9, 1, 1], [9**9] * 3, {}, {"a": 1}, [[["deep"]]], None]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.sampled_from(ODD) | st.recursive(
    LEAVES, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8
)


@st.composite
def damaged(draw, content):
    """Changes bytes: at random places, or everything after one, or nothing."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        end = draw(st.sampled_from([place, place + 1, len(data)]))
        data[place:end] = draw(st.binary(max_size=12))
    return bytes(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    create_run(folder / "run", data_dir=save_data_set(folder / "data"), steps=(1, 2))
    log = RunLog(str(folder / "run"))
    log.write_train(step=1, epoch=0.5, loss=1.0, accuracy=0.5)
    log.close()
    return folder / "run"


def one_line_or_value(function):
    try:
        return function()
    except InputError as error:
        line = printable(" ".join(str(error).split()))
        assert 0 < len(line) < 5000
        assert line.isprintable()


@fuzzed
@given(st.data())
def test_config(run, data):
    with (run / "config.json").open() as file:
        config = json.load(file)
    for _ in range(data.draw(st.integers(0, 3))):
        section = config[data.draw(st.sampled_from(["settings", "flags", "resolved"]))]
        name = data.draw(st.sampled_from([*section, "dropout", "seed"]))
        section[name] = data.draw(VALUES)
        if data.draw(st.booleans()):
            del section[name]
    content = json.dumps(config).encode()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "run")
        shutil.copytree(run, copy)
        (copy / "config.json").write_bytes(data.draw(damaged(content)))
        model_dir = str(copy)
        one_line_or_value(lambda: check_settings(model_dir, {"seed": 0, "model": "x"}))
        is_restart(model_dir)
        load_patience(model_dir)
        options = TrainingOptions(model_dir=model_dir)
        one_line_or_value(lambda: take_recorded(options, set(), say=lambda _: None))
        found = one_line_or_value(lambda: load_run_config(model_dir))
        if found and ":" not in found.model:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one_line_or_value(
                    lambda: create_inference_state(found, model_dir=model_dir)
                )
        assert os.listdir(folder) == ["run"]


RECORDS = [
    {"kind": "train", "step": 1, "epoch": 0.1, "time": 1.0, "loss": 1.0},
    {"kind": "eval", "step": 1, "epoch": 0.1, "time": 1.0, "accuracy": 0.5},
    {"kind": "train", "step": 3, "epoch": 0.3, "time": 1.0, "loss": None},
]


@st.composite
def lines(draw):
    found = []
    for record in draw(st.lists(st.sampled_from(RECORDS), max_size=6)):
        changed = dict(record)
        for _ in range(draw(st.integers(0, 2))):
            names = st.sampled_from(["kind", "step", "accuracy", "loss", "x"])
            changed[draw(names)] = draw(VALUES)
        found.append(json.dumps(changed).encode())
    return draw(damaged(b"\n".join(found) + draw(st.sampled_from([b"\n", b""]))))


@fuzzed
@given(content=lines(), resume_step=st.integers(0, 4))
def test_metrics(content, resume_step):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        (run / "checkpoints").mkdir(parents=True)
        (run / "metrics.jsonl").write_bytes(content)
        list_run_checkpoints(str(run))
        log = RunLog(str(run), resume_step=resume_step)
        accuracy = log.last_eval_accuracy()
        assert accuracy is None or 0 <= accuracy <= 1
        log.write_train(step=resume_step + 1, epoch=1.0, loss=1.0)
        log.close()
        whole = (run / "metrics.jsonl").read_bytes()
        records = [json.loads(line) for line in whole.splitlines()]
        assert whole.endswith(b"\n")
        assert records[-1]["step"] == resume_step + 1
        assert all(r["step"] <= resume_step for r in records[:-1])
        # What is dropped of what was to stay is kept beside it.
        for copy in run.glob("metrics.jsonl.damaged*"):
            assert copy.read_bytes() == content
        assert os.listdir(folder) == ["run"]


@st.composite
def events(draw):
    with tempfile.TemporaryFile() as file:
        writer = RecordWriter(file)
        for _ in range(draw(st.integers(0, 5))):
            event = Event(step=draw(st.integers(-(2**63), 2**63 - 1)), wall_time=1.0)
            kind = draw(
                st.sampled_from(["scalar", "text", "empty", "bytes", "damaged"])
            )
            if kind == "scalar":
                event.summary.MergeFrom(scalar_pb("loss", 1.0))
            elif kind == "text":
                event.summary.MergeFrom(text_pb("settings", draw(st.text())))
            content = event.SerializeToString()
            if kind == "bytes":
                content = draw(st.binary(max_size=50))
            elif kind == "damaged":
                content = draw(damaged(content))
            writer.write(content)
        file.seek(0)
        return draw(damaged(file.read()))


@fuzzed
@given(content=events(), resume_step=st.integers(0, 4))
def test_event_files(content, resume_step):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        old = run / "train" / "events.out.tfevents.0000000001.host.1.v2"
        old.parent.mkdir(parents=True)
        old.write_bytes(content)
        before = [event for _, event in _load_events(str(old))]
        log = RunLog(str(run), resume_step=resume_step)
        log.write_text("settings", "text")
        log.close()
        after = [event for _, event in _load_events(str(old))]
        kept = [e for e in before if not e.HasField("summary") or e.step <= resume_step]
        assert after == kept
        assert len(list(old.parent.iterdir())) == 2
        assert os.listdir(folder) == ["run"]
