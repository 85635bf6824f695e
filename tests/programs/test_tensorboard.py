"""A real TensorBoard in a real browser, on a run that was killed and went on."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from browser import open_browser
from small_mnist import small_mnist
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mnist_dist.data import load_dataset

TRAIN = (
    *(f"--data_dir={small_mnist()}", "--model=cnn", "--global_batch_size=16"),
    *("--augment", "--enable_xla=off", "--noexport", "--noprogress", "--seed=7"),
    *("--summary_interval=5", "--eval_interval=10", "--checkpoint_interval=10"),
    "--summary_detail=full",
)
# All text of a page, also that of its components.
TEXT = """
function textOf(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data + ' ';
  if (['STYLE', 'SCRIPT', 'NOSCRIPT'].includes(node.nodeName)) return '';
  const inside = [...(node.shadowRoot ? node.shadowRoot.childNodes : []),
                  ...node.childNodes];
  return inside.map(textOf).join('');
}
return textOf(document.body).replace(/\\s+/g, ' ');
"""


@pytest.fixture(scope="module")
def folder(fork_server, tmp_path_factory):
    """A run that was killed after its second checkpoint, and went on to its end."""
    folder = tmp_path_factory.mktemp("runs")
    flags = (*TRAIN, f"--model_dir={folder}/digits")
    process = fork_server.start("mnist_dist.train", *flags, "--train_steps=100000")
    process.wait_for(folder / "digits" / "checkpoints" / "ckpt-20.index")
    process.kill(signal.SIGKILL)
    process.wait()
    process = fork_server.start(
        *("mnist_dist.train", *flags, "--restore=20", "--train_steps=60"),
        *("--override_config", "--label_smoothing=0.25"),
    )
    assert process.wait() == 0, process.stderr()
    return folder


def records(folder, kind):
    lines = (folder / "digits" / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def events(folder, kind):
    return EventAccumulator(str(folder / "digits" / kind), {"tensors": 0}).Reload()


@pytest.fixture(scope="module")
def address(folder):
    """Where TensorBoard serves the folder, when it has read the run."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    process = subprocess.Popen(
        [*command, "--host=127.0.0.1", "--port=0"], stderr=subprocess.PIPE, text=True
    )
    try:
        found = None
        while not found:
            line = process.stderr.readline()
            assert line, "TensorBoard has ended"
            found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        deadline = time.monotonic() + 60
        while "digits/eval" not in get(f"{found[0]}data/runs"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield found[0]
    finally:
        process.kill()
        process.communicate()


def get(url):
    with urllib.request.urlopen(url) as answer:
        return json.loads(answer.read())


def test_curves_are_those_of_the_records_without_gap_or_doubled_point(folder, address):
    for kind in ("train", "eval"):
        for tag in ("loss", "accuracy"):
            query = urllib.parse.urlencode({"run": f"digits/{kind}", "tag": tag})
            points = get(f"{address}data/plugin/scalars/scalars?{query}")
            assert [(step, np.float32(value)) for _, step, value in points] == [
                (r["step"], np.float32(r[tag])) for r in records(folder, kind)
            ]
    assert [r["step"] for r in records(folder, "train")] == list(range(5, 61, 5))


def test_time_and_memory_have_a_point_for_each_training_record(folder):
    found = events(folder, "train")
    names = ("input", "step", "evaluation", "checkpoint", "host")
    tags = [f"perf/share_{name}" for name in names]
    tags += ["perf/step_ms", "memory/host", "memory/host_peak"]
    for tag in tags:
        steps = [point.step for point in found.Tensors(tag)]
        assert steps == [r["step"] for r in records(folder, "train")], tag
    shares = [
        sum(found.Tensors(tag)[i].tensor_proto.float_val[0] for tag in tags[:5])
        for i in range(len(records(folder, "train")))
    ]
    np.testing.assert_allclose(shares, 1.0, rtol=1e-5)


def test_next_step_is_measured_at_each_training_record(folder):
    found = events(folder, "train")
    for tag in ("gradients/global_norm", "updates/conv_layer_1/kernel"):
        points = found.Tensors(tag)
        assert [p.step for p in points] == [r["step"] for r in records(folder, "train")]
        assert all(p.tensor_proto.float_val[0] > 0 for p in points)


def test_classes_and_curves_are_those_of_the_evaluation(folder):
    found = events(folder, "eval")
    evaluated = records(folder, "eval")
    errors = [e.tensor_proto.float_val[0] for e in found.Tensors("errors")]
    assert errors == [round((1 - r["accuracy"]) * 1_000) for r in evaluated]
    labels = load_dataset(small_mnist()).test.labels
    # Of each class's images its accuracy is right: together, all that is right.
    right = sum(
        found.Tensors(f"classes/{n}")[-1].tensor_proto.float_val[0]
        * np.sum(labels == n)
        for n in range(10)
    )
    assert right == pytest.approx(1_000 - errors[-1])
    # At threshold 0 everything is taken: as many are right as there are images.
    curve = tf.make_ndarray(found.Tensors("pr/3/pr_curves")[-1].tensor_proto)
    assert curve[0, 0] == np.sum(labels == 3)
    assert curve[1, 0] == np.sum(labels != 3)


def test_session_has_its_settings_and_one_end(folder):
    found = events(folder, "eval")
    start, end = (
        HParamsPluginData.FromString(
            found.SummaryMetadata(f"_hparams_/session_{name}_info").plugin_data.content
        )
        for name in ("start", "end")
    )
    settings = start.session_start_info.hparams
    assert start.session_start_info.group_name == f"{folder}/digits"  # no other's
    assert settings["model"].string_value == "cnn"
    assert settings["seed"].number_value == 7
    assert settings["label_smoothing"].number_value == 0.25  # since the resume
    assert settings["augment"].bool_value is True
    assert end.session_end_info.status == 1  # success
    assert len(found.Tensors("_hparams_/session_end_info")) == 1


TABS = {
    "timeseries": ["accuracy", "loss", "memory", "perf", "digits/train"],
    "scalars": ["accuracy", "images_per_second", "gradients", "updates", "digits/eval"],
    "custom_scalars": ["Progress", "Speed", "Gradients", "perf/step_ms (digits/train)"],
    "images": [
        "batch digits/train",
        "first_layer",
        "confusion digits/eval",
    ],
    "graphs": ["conv_layer_1", "conv_layer_2", "dense_layer_1"],
    "pr_curves": ["pr/0", "digits/eval"],
    "histograms": ["weights/conv_layer_1/kernel digits/eval"],
    "distributions": ["weights/dense_layer_1/bias digits/eval"],
    "text": ["--summary_detail=full", "training images 4,000", "versions"],
    "hparams": ["digits", "learning_rate", "accuracy", "loss", "Success"],
}


@pytest.fixture(scope="module")
def browser(address):
    with open_browser(width=1500, height=1500) as browser:
        browser.get(address)
        yield browser


@pytest.mark.parametrize("tab", TABS)
def test_tab_shows_the_run(tab, address, browser):
    browser.get("about:blank")
    browser.get(f"{address}#{tab}")
    deadline = time.monotonic() + 30
    while missing := [
        words for words in TABS[tab] if words not in browser.execute_script(TEXT)
    ]:
        assert time.monotonic() < deadline, (missing, browser.execute_script(TEXT))
        time.sleep(0.2)
    log = browser.get_log("browser")
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []


def test_script_names_a_directory_that_is_not_there(tmp_path):
    script = Path(__file__).parents[2] / "launch" / "tensorboard.sh"
    result = subprocess.run(
        [script, tmp_path / "none"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert f"found no directory {tmp_path}/none" in result.stderr


def test_minimal_detail_shows_what_it_always_did(fork_server, tmp_path):
    flags = [f"--model_dir={tmp_path}", *TRAIN, "--train_steps=10"]
    process = fork_server.start("mnist_dist.train", *flags, "--summary_detail=minimal")
    assert process.wait() == 0, process.stderr()
    tags = {
        kind: set(EventAccumulator(str(tmp_path / kind)).Reload().Tags()["tensors"])
        for kind in ("train", "eval")
    }
    assert tags["eval"] == {"loss", "accuracy"}
    assert tags["train"] - {"settings", "model"} == {
        *("loss", "accuracy", "images_per_second", "learning_rate"),
        "nonfinite_steps",
    }
