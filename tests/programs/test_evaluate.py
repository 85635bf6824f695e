"""The evaluate program."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from run_factory import create_run, save_data_set

from mnist_dist.data import load_dataset
from mnist_dist.evaluation.classification_report import (
    create_classification_report,
    format_report,
)
from mnist_dist.run.lock import open_for_writing


@pytest.fixture(scope="module")
def run(fork_server, tmp_path_factory):
    """A run of the steps 1, 2 and 3 on a small data set, exported."""
    folder = tmp_path_factory.mktemp("evaluate")
    data_dir = save_data_set(folder / "data")
    create_run(folder / "run", data_dir=data_dir, steps=(1, 2, 3))
    for step in ("1", "3"):
        process = fork_server.start(
            "mnist_dist.export",
            f"--model_dir={folder}/run",
            f"--checkpoint={step}",
            f"--export_dir={folder}/export{step}",
        )
        assert process.wait() == 0, process.stderr()
    return folder


def evaluate(fork_server, *flags):
    process = fork_server.start("mnist_dist.evaluate", *flags)
    assert process.wait() == 0, process.stderr()
    return process.stdout()


def scalars(directory):
    found = {}
    for name in sorted(os.listdir(directory)):
        if "tfevents" in name:
            for event in tf.compat.v1.train.summary_iterator(f"{directory}/{name}"):
                for value in event.summary.value:
                    if value.tag in ("loss", "accuracy"):
                        number = float(tf.make_ndarray(value.tensor))
                        found.setdefault(value.tag, []).append((event.step, number))
    return found


def test_checkpoint_on_replicas_and_saved_model_give_one_report(run, fork_server):
    reports = []
    for flags in (
        [f"--model_dir={run}/run"],
        [f"--model_dir={run}/run", "--logical_cpus=3"],
        [f"--export_dir={run}/export3"],
        [f"--export_dir={run}/export3/3"],
    ):
        result = json.loads(evaluate(fork_server, *flags, "--format=json"))
        assert result["data"]["source"] == f"{run}/data"
        (model,) = result["models"]
        assert (model["step"], model["moving_average"]) == (3, True)
        assert model["num_examples"] == 53
        reports.append(model)
    for report in reports[1:]:
        for name in ("num_errors", "accuracy", "confusion", "classes"):
            assert report[name] == reports[0][name]
        np.testing.assert_allclose(report["loss"], reports[0]["loss"], rtol=1e-5)


def test_other_data_than_the_run_was_trained_on_is_warned_of(fork_server, tmp_path):
    data_dir = save_data_set(tmp_path / "data")
    create_run(tmp_path / "run", data_dir=data_dir)
    save_data_set(data_dir, seed=1)
    warning = f"was trained on other data than what is now in {data_dir}"
    flags = [f"--model_dir={tmp_path}/run"]
    for more, is_warned in (([], True), ([f"--data_dir={data_dir}"], False)):
        process = fork_server.start("mnist_dist.evaluate", *flags, *more)
        assert process.wait() == 0, process.stderr()
        assert (warning in process.stderr()) == is_warned
        assert process.stderr().count("\n") == is_warned
    process = fork_server.start("mnist_dist.export", *flags)
    assert process.wait() == 0, process.stderr()
    assert warning in process.stderr()
    # The card tells apart what it was trained on and what it was evaluated on.
    card = json.loads((tmp_path / "run/export/1/model_card.json").read_text())
    assert card["evaluation"]["data_sha256"] == load_dataset(str(data_dir)).checksum
    assert card["evaluation"]["data_sha256"] != card["data"]["sha256"]


def test_several_saved_models_are_an_ensemble(run, fork_server, tmp_path):
    directories = [f"--export_dir={run}/export{step}" for step in (1, 3)]
    flags = [*directories, "--format=json", f"--summary_dir={tmp_path}"]
    result = json.loads(evaluate(fork_server, *flags))
    with np.load(run / "data" / "mnist.npz") as data:
        images, labels = data["x_test"], data["y_test"]
    probabilities = [
        tf.saved_model.load(f"{run}/export{step}/{step}")
        .signatures["serving_default"](images=tf.constant(images))["probabilities"]
        .numpy()
        for step in (1, 3)
    ]
    for report, p in zip(
        [*result["models"], result["ensemble"]],
        [*probabilities, np.mean(probabilities, axis=0)],
        strict=True,
    ):
        wrong = np.flatnonzero(p.argmax(axis=1) != labels)
        assert [m["index"] for m in report["misclassified"]] == wrong.tolist()
        loss = -np.log(p[np.arange(53), labels]).mean()
        np.testing.assert_allclose(report["loss"], loss, rtol=1e-4)
    folders = ["ensemble", "model_1", "model_2"]
    assert sorted(os.listdir(tmp_path)) == folders
    accuracy = result["ensemble"]["accuracy"]
    np.testing.assert_allclose(
        scalars(tmp_path / "ensemble")["accuracy"], [(3, accuracy)], rtol=1e-6
    )
    table = evaluate(fork_server, *directories)
    assert "ensemble  of these 2, probabilities averaged" in table
    expected = create_classification_report(
        labels,
        classes=p.argmax(axis=1),
        confidences=p.max(axis=1),
        losses=-np.log(p[np.arange(53), labels]),
        num_classes=4,
    )
    assert table.rstrip().endswith(format_report(expected))


def test_watch_evaluates_each_checkpoint_once_also_after_a_restart(
    run, fork_server, tmp_path
):
    model_dir = tmp_path / "run"
    shutil.copytree(run / "run", model_dir)
    flags = [f"--model_dir={model_dir}", "--watch", "--timeout=0"]
    output = evaluate(fork_server, *flags)
    assert [line.split()[1] for line in output.splitlines()] == ["1", "2", "3"]
    directory = model_dir / "eval_watch"
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert len(before) == 6
    assert [step for step, _ in scalars(directory)["loss"]] == [1, 2, 3]
    assert evaluate(fork_server, *flags) == ""
    assert {p.name: p.stat().st_mtime_ns for p in directory.iterdir()} == before
    # The run goes back, and comes to step 2 again with other weights.
    os.utime(model_dir / "checkpoints" / "ckpt-2.index", ns=(1, 1))
    output = evaluate(fork_server, *flags)
    assert [line.split()[1] for line in output.splitlines()] == ["2", "3"]
    assert [step for step, _ in scalars(directory)["loss"]] == [1, 2, 3]
    # The run goes back, and has not come any further yet.
    (model_dir / "checkpoints" / "ckpt-3.index").rename(tmp_path / "3.index")
    (model_dir / "checkpoints" / "ckpt-3.data-00000-of-00001").unlink()
    watch = fork_server.start("mnist_dist.evaluate", *flags)
    assert watch.wait() == 1
    assert watch.stdout() == ""
    assert [step for step, _ in scalars(directory)["loss"]] == [1, 2]
    assert not (directory / "ckpt-3.json").exists()


def test_watch_never_mixes_or_removes_evaluations_of_another_kind(
    run, fork_server, tmp_path
):
    for name in ("a", "b"):
        shutil.copytree(run / "run", tmp_path / name)
    directory = tmp_path / "a" / "eval_watch"
    flags = [f"--model_dir={tmp_path}/a", "--watch", "--timeout=0"]
    assert evaluate(fork_server, *flags) != ""
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    other_data = save_data_set(tmp_path / "data", seed=1)
    (tmp_path / "b" / "checkpoints" / "ckpt-3.index").unlink()
    for more, named in (
        (["--split=train"], "of the split test, expected the split train;"),
        (["--nouse_ema"], "of the moving average, expected the weights themselves;"),
        ([f"--data_dir={other_data}"], "of the data set with SHA-256 "),
        (
            [f"--model_dir={tmp_path}/b", f"--summary_dir={directory}"],
            "of the run .., expected the run ../../b;",
        ),
    ):
        process = fork_server.start("mnist_dist.evaluate", *flags, *more)
        assert process.wait() == 2
        assert f"{directory} has evaluations {named}" in process.stderr()
        assert process.stderr().endswith("; give another --summary_dir\n")
        assert {p.name: p.read_bytes() for p in directory.iterdir()} == before
    # The same data elsewhere are no other data; a run that moved is no other run.
    (tmp_path / "a").rename(tmp_path / "moved")
    same = [f"--model_dir={tmp_path}/moved", f"--data_dir={run}/data", "--use_ema"]
    assert evaluate(fork_server, *flags, *same) == ""


def test_watch_works_on_a_path_with_a_scheme(fork_server, tmp_path):
    create_run(tmp_path / "run", steps=(1, 2))
    program = (
        "import os, sys, tensorflow as tf\n"
        "from mnist_dist import evaluate\n"
        "run, remote = sys.argv[1], 'ram://watch/run'\n"
        "for folder, _, names in os.walk(run):\n"
        "    to = (remote + folder[len(run):])\n"
        "    tf.io.gfile.makedirs(to)\n"
        "    for name in names:\n"
        "        tf.io.gfile.copy(f'{folder}/{name}', f'{to}/{name}')\n"
        "evaluate.FLAGS(['evaluate', f'--model_dir={remote}', '--watch', '--timeout=0'])\n"
        "assert evaluate.main([]) == 0\n"
        "assert evaluate.main([]) == 0\n"
        "print(sorted(tf.io.gfile.listdir(f'{remote}/eval_watch')))\n"
    )
    process = fork_server.start("-c", program, str(tmp_path / "run"))
    assert process.wait() == 0, process.stderr()
    *lines, listed = process.stdout().splitlines()
    assert [line.split()[1] for line in lines] == ["1", "2"]
    assert "ckpt-1.json" in listed
    assert "ckpt-2.json" in listed


def test_watch_follows_a_training_to_its_end(fork_server, tmp_path):
    flags = [f"--model_dir={tmp_path}/run"]
    watch = fork_server.start("mnist_dist.evaluate", *flags, "--watch", "--timeout=90")
    flags += ["--model=mlp", "--train_steps=60", "--enable_xla=off", "--noprogress"]
    flags += ["--checkpoint_interval=20", "--eval_interval=20", "--noexport"]
    train = fork_server.start("mnist_dist.train", *flags)
    assert train.wait() == 0, train.stderr()
    assert watch.wait() == 0, watch.stderr()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [r for r in map(json.loads, lines) if r["kind"] == "eval"]
    found = scalars(tmp_path / "run" / "eval_watch")
    for tag in ("loss", "accuracy"):
        expected = [(r["step"], r[tag]) for r in trained]
        np.testing.assert_allclose(found[tag], expected, rtol=1e-5)
    assert watch.stdout().splitlines()[-1].startswith("step 60 ")


def test_watch_goes_on_with_a_finished_run_that_is_made_longer(fork_server, tmp_path):
    data_dir = save_data_set(tmp_path / "data")
    create_run(tmp_path / "run", data_dir=data_dir, steps=(1,))
    with open_for_writing(str(tmp_path / "run")):  # the training has come
        watch = fork_server.start(
            "mnist_dist.evaluate", f"--model_dir={tmp_path}/run", "--watch"
        )
        watch.wait_for(tmp_path / "run" / "eval_watch" / "ckpt-1.json")
        time.sleep(1)
        create_run(tmp_path / "run", data_dir=data_dir, steps=(2,))
        watch.wait_for(tmp_path / "run" / "eval_watch" / "ckpt-2.json", seconds=20)
    assert watch.wait() == 0, watch.stderr()
    assert [line.split()[1] for line in watch.stdout().splitlines()] == ["1", "2"]


def test_watch_that_waits_in_vain_exits_1_and_a_stopped_one_143(fork_server, tmp_path):
    watch = fork_server.start(
        "mnist_dist.evaluate", f"--model_dir={tmp_path}", "--watch", "--timeout=1"
    )
    assert watch.wait() == 1
    assert "--timeout: 1 seconds without a new checkpoint" in watch.stderr()
    data_dir = save_data_set(tmp_path / "data")
    create_run(tmp_path / "run", data_dir=data_dir, total_steps=9)
    watch = fork_server.start(
        "mnist_dist.evaluate", f"--model_dir={tmp_path}/run", "--watch"
    )
    watch.wait_for(tmp_path / "run" / "eval_watch" / "ckpt-1.json")
    time.sleep(0.1)
    watch.kill(signal.SIGTERM)
    assert watch.wait() == 143
    assert "stopped by SIGTERM" in watch.stdout()


def test_watch_stopped_while_it_imports_stops_as_later(tmp_path):
    program = (
        "import os, signal\n"
        "from mnist_dist import evaluate\nfrom mnist_dist.cli import program\n"
        "imports = program.quiet_imports\n"
        "def stopped_imports():\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    return imports()\n"
        "program.quiet_imports = stopped_imports\n"
        "program.run(evaluate.main)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, f"--model_dir={tmp_path}", "--watch"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 143, result.stderr
    assert result.stdout.startswith("stopped by SIGUSR1;")


def test_card_may_not_know_the_data(run, fork_server, tmp_path):
    path = shutil.copytree(run / "export1" / "1", tmp_path / "model")
    card = json.loads((path / "model_card.json").read_text())
    (path / "model_card.json").write_text(json.dumps(card | {"data": None}))
    evaluate(fork_server, f"--export_dir={path}", f"--data_dir={run}/data")


@pytest.mark.parametrize("has_card", [True, False])
@pytest.mark.parametrize("damage", ["no variables", "truncated", "no serving_default"])
def test_damaged_saved_model_exits_2_with_one_line(
    damage, has_card, run, fork_server, tmp_path
):
    path = tmp_path / "model"
    if damage == "no serving_default":
        module = tf.Module()
        module.other = tf.function(
            lambda x: {"y": x}, input_signature=[tf.TensorSpec([None])]
        )
        tf.saved_model.save(module, str(path), signatures={"other": module.other})
    else:
        shutil.copytree(run / "export1" / "1", path)
        if not has_card:
            os.remove(path / "model_card.json")
        if damage == "no variables":
            shutil.rmtree(path / "variables")
        else:
            os.truncate(path / "saved_model.pb", 1000)
    process = fork_server.start("mnist_dist.evaluate", f"--export_dir={path}")
    assert process.wait() == 2
    assert process.stderr().count("\n") == 1, process.stderr()
    assert str(path) in process.stderr()
