"""The weights program, and a layer's way from one run into another network."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from run_factory import create_run
from small_mnist import small_mnist
from tensorflow.compat.v1.train import summary_iterator

from mnist_dist.evaluation.watch_records import save_record
from mnist_dist.files.arrays import specs_of
from mnist_dist.layer_weights.layers import load_layer, set_layer
from mnist_dist.layer_weights.weight_sources import load_weights
from mnist_dist.run.checkpoint_choice import read_newest
from mnist_dist.run.checkpoints import list_checkpoints, load_arrays
from mnist_dist.run.lock import open_for_writing

MINE = """
import keras
def create(*, image_shape, num_classes):
    return keras.Sequential([keras.Input(image_shape), keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu", name="features"),
        keras.layers.Dense(num_classes, name="head")], name="mine")
"""
SHORT = [
    f"--data_dir={small_mnist()}",
    "--global_batch_size=32",
    "--noprogress",
    "--enable_xla=off",
    "--noaugment",
    "--train_steps=60",
]
SHORT += ["--eval_interval=20", "--checkpoint_interval=20"]


@pytest.fixture(scope="module")
def run(fork_server):
    def run(verb, *arguments, folder=None):
        process = fork_server.start("mnist_dist", verb, *arguments, folder=folder)
        process.wait()
        return process

    return run


@pytest.fixture(scope="module")
def succeed(run):
    def succeed(*arguments, **kwargs):
        process = run(*arguments, **kwargs)
        assert process.wait() == 0, process.stderr()
        return process.stdout()

    return succeed


@pytest.fixture(scope="module")
def rows(succeed):
    return lambda *arguments: json.loads(
        succeed("weights", *arguments, "--format=json")
    )["rows"]


@pytest.fixture(scope="module")
def mlp(succeed, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("runs") / "mlp")
    # Two replicas: what reads the weights knows nothing of the strategy.
    succeed("train", f"--model_dir={path}", "--model=mlp", "--logical_cpus=2", *SHORT)
    return path


def test_list_gives_the_key_under_which_tensorflow_finds_each_weight(mlp, rows):
    found = rows("list", f"--model_dir={mlp}", "--nouse_ema")
    reader = tf.train.load_checkpoint(f"{mlp}/checkpoints/ckpt-60")
    assert [(r["layer"], r["weight"]) for r in found] == [
        (layer, weight)
        for layer in ("dense_layer_1", "dense_layer_2")
        for weight in ("bias", "kernel")
    ]
    for row in found:
        array = reader.get_tensor(row["key"])
        assert (row["shape"], row["dtype"]) == (list(array.shape), "float32")
        assert row["norm"] == pytest.approx(np.linalg.norm(array), rel=1e-5)


def test_saved_model_holds_the_weights_that_save_takes(mlp, rows):
    found = rows("diff", f"--from={mlp}", f"--to={mlp}/export")
    assert [r["layer"] for r in found] == ["dense_layer_1", "dense_layer_2"]
    assert [r["num_different"] for r in found] == [0, 0]


def test_layers_named_in_one_flag_or_several_are_all_taken(
    mlp, tmp_path, succeed, rows
):
    both = "dense_layer_1:a", "dense_layer_2:b"
    flags = [f"--from={mlp}", f"--output={tmp_path}/one.npz"]
    succeed("weights", "transplant", *flags, f"--map={','.join(both)}")
    flags[1] = f"--output={tmp_path}/several.npz"
    succeed("weights", "transplant", *flags, *(f"--map={pair}" for pair in both))
    for name in ("one", "several"):
        with np.load(tmp_path / f"{name}.npz") as file:
            assert set(file) == {"a/bias", "a/kernel", "b/bias", "b/kernel"}
    layers = ["--layers=dense_layer_1", "--layers=dense_layer_2"]
    assert len(rows("list", f"--from={mlp}", *layers)) == 4


@pytest.mark.parametrize("frozen", [True, False])
def test_first_layer_of_a_run_in_a_network_of_ones_own_in_two_commands(
    frozen, mlp, tmp_path, succeed
):
    (tmp_path / "mine.py").write_text(MINE)
    file = f"{tmp_path}/features.npz"
    source = ["--map=dense_layer_1:features", f"--from={mlp}"]
    succeed("weights", "transplant", *source, f"--output={file}")
    flags = [f"--model_dir={tmp_path}/mine", "--model=mine:create", *SHORT]
    flags += [f"--init_from={file}", "--noexport", "--learning_rate=1e-3"]
    flags += ["--freeze=features"] if frozen else ["--train_steps=1"]
    # With a rate of 0 a layer that is not frozen shows what it started from.
    flags += [] if frozen else ["--learning_rate=0"]
    output = succeed("train", *flags, folder=tmp_path)
    assert "init_from  features applied as features: bias float32 [128]" in output
    expected = load_layer(mlp, "dense_layer_1")
    for use_ema in (True, False):
        found = load_layer(f"{tmp_path}/mine", "features", use_ema=use_ema)
        for name, array in expected.items():
            assert found[name].tobytes() == array.tobytes()


def test_load_and_transplant_change_a_run_that_goes_on(mlp, tmp_path, run, succeed):
    target = f"{tmp_path}/target"
    common = ["train", f"--model_dir={target}", "--model=mlp", "--seed=5", "--noexport"]
    succeed(*common, *SHORT, "--train_steps=20", "--lr_schedule=constant")
    with open_for_writing(target):
        result = run("weights", "load", f"--from={mlp}", f"--model_dir={target}")
        assert result.wait() == 2
        assert "is being written by process" in result.stderr()
    before = load_arrays(f"{target}/checkpoints/ckpt-20")
    output = succeed(
        "weights", "transplant", f"--from={mlp}", f"--model_dir={target}",
        "--layers=dense_layer_1",
    )  # fmt: skip
    assert "dense_layer_1  applied" in output
    after = load_arrays(f"{target}/checkpoints/ckpt-20")
    expected = load_layer(mlp, "dense_layer_1")["kernel"]
    for kind in ("model", "ema"):
        np.testing.assert_array_equal(after[f"{kind}/dense_layer_1/kernel"], expected)
    assert not after["optimizer/mean/dense_layer_1/kernel"].any()
    for name in before:
        if "dense_layer_1" not in name and not name.startswith("best/"):
            np.testing.assert_array_equal(after[name], before[name])
    assert (after["best/step"], after["best/accuracy"]) == (-1, -1.0)
    assert evaluated_steps(target) == []
    aside = load_arrays(f"{target}/checkpoints/replaced-1/ckpt-20")
    np.testing.assert_array_equal(
        aside["model/dense_layer_1/kernel"], before["model/dense_layer_1/kernel"]
    )
    # The accuracy of the weights before is not that of these: it is evaluated again.
    succeed(*common, *SHORT, "--train_steps=40", "--lr_schedule=constant")
    assert list_checkpoints(f"{target}/checkpoints")[0] == 40
    assert evaluated_steps(target) == [20, 40]
    (eval_events,) = [
        [
            event.step
            for file in files
            for event in summary_iterator(file)
            if any(value.tag == "accuracy" for value in event.summary.value)
        ]
        for files in [sorted(map(str, Path(target, "eval").iterdir()))]
    ]
    assert eval_events == [20, 40]


def evaluated_steps(model_dir):
    lines = Path(model_dir, "metrics.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return [record["step"] for record in records if record["kind"] == "eval"]


def test_load_changes_the_checkpoint_that_the_run_goes_on_from(mlp, tmp_path, succeed):
    create_run(tmp_path / "run", steps=(1, 2), best_step=2)
    for path in (tmp_path / "run" / "checkpoints").glob("ckpt-2.*"):
        path.unlink()  # killed between the evaluation and the checkpoint
    file = f"{tmp_path}/F.npz"
    succeed("weights", "save", f"--from={mlp}", f"--output={file}")
    succeed("weights", "load", f"--from={file}", f"--model_dir={tmp_path}/run")
    _, found = read_newest([f"{tmp_path}/run/checkpoints", f"{tmp_path}/run/best"])
    assert found["step"] == 2
    assert specs_of(found) == specs_of(load_arrays(f"{tmp_path}/run/best/ckpt-2"))
    expected = load_layer(file, "dense_layer_1")["kernel"]
    np.testing.assert_array_equal(found["model/dense_layer_1/kernel"], expected)


def test_checkpoints_are_listed_and_gone_back_to(mlp, tmp_path, run, succeed, rows):
    run_dir = f"{tmp_path}/run"
    shutil.copytree(mlp, run_dir)
    os.truncate(f"{run_dir}/checkpoints/ckpt-40.data-00000-of-00001", 1000)
    found = rows("checkpoints", f"--model_dir={run_dir}")
    with open(f"{run_dir}/metrics.jsonl") as file:
        accuracies = {
            r["step"]: r["accuracy"]
            for r in map(json.loads, file)
            if r["kind"] == "eval"
        }
    own = [r for r in found if not r["is_best"]]
    assert [r["step"] for r in own] == [60, 40, 20]
    assert [r["accuracy"] for r in own] == [accuracies[s] for s in (60, 40, 20)]
    assert [bool(r["damage"]) for r in own] == [False, True, False]
    best = max(accuracies, key=accuracies.__getitem__)
    assert [r["step"] for r in found if r["is_best"]] == [best]
    result = run("weights", "revert", f"--model_dir={run_dir}", "--step=40")
    assert result.wait() == 2
    assert "found 40, expected one of the whole checkpoints" in result.stderr()
    assert list_checkpoints(f"{run_dir}/checkpoints") == [60, 40, 20]
    watched = f"{run_dir}/eval_watch"
    os.mkdir(watched)
    for step in (20, 40):
        save_record(watched, step, {"step": step})
    output = succeed("weights", "revert", f"--model_dir={run_dir}", "--step=20")
    assert "goes on from step 20" in output
    assert os.listdir(watched) == ["ckpt-20.json"]
    assert list_checkpoints(f"{run_dir}/checkpoints") == [20]
    assert list_checkpoints(f"{run_dir}/checkpoints/later-than-20") == [60, 40]
    found = rows("checkpoints", f"--model_dir={run_dir}")
    assert [r["step"] for r in found if not r["is_set_aside"]] == [20]
    aside = [r["path"] for r in found if r["is_set_aside"]]
    (path,) = [p for p in aside if p.endswith("checkpoints/later-than-20/ckpt-60")]
    # Forward again.
    flags = ["train", f"--model_dir={run_dir}", f"--restore={path}"]
    succeed(*flags, "--train_steps=70", "--override_config", *SHORT[:3], "--noexport")
    assert list_checkpoints(f"{run_dir}/checkpoints") == [70, 60, 20]


def test_revert_as_json_says_what_became_of_the_run(tmp_path, succeed):
    create_run(tmp_path, steps=(1, 2), best_step=2)
    (tmp_path / "export" / "2").mkdir(parents=True)
    flags = [f"--model_dir={tmp_path}", "--step=1", "--format=json"]
    assert json.loads(succeed("weights", "revert", *flags)) == {
        "run": str(tmp_path),
        "step": 1,
        "set_aside": [f"{tmp_path}/best/ckpt-2", f"{tmp_path}/checkpoints/ckpt-2"],
        "stale_exports": [f"{tmp_path}/export/2"],
    }


def test_choice_that_a_source_does_not_have_is_refused(
    mlp, tmp_path, fork_server, succeed
):
    file = f"{tmp_path}/F.npz"
    flags = [f"--from={mlp}", f"--output={file}", "--checkpoint=20", "--nouse_ema"]
    succeed("weights", "save", *flags)
    checkpoint = f"{mlp}/checkpoints/ckpt-20"
    refused = [
        (
            [f"--from={file}", "--checkpoint=best"],
            f"--checkpoint: found it with {file}",
        ),
        ([f"--from={file}", "--use_ema"], f"--use_ema: found it with {file}"),
        ([f"--from={checkpoint}", "--checkpoint=20"], "--checkpoint: found it with"),
        ([f"--from={mlp}/export", "--nouse_ema"], "--use_ema: found it with"),
    ]
    for flags, message in refused:
        process = fork_server.start("mnist_dist.weights", "list", *flags)
        assert process.wait() == 2, flags
        assert message in process.stderr()
        assert process.stderr().count("\n") == 1
    # Of two sources one may have it.
    flags = [f"--from={mlp}", f"--to={file}", "--checkpoint=20", "--nouse_ema"]
    process = fork_server.start("mnist_dist.weights", "diff", *flags)
    assert process.wait() == 0, process.stderr()
    assert "equal      yes" in process.stdout()


def test_layer_in_three_lines(mlp):
    dense = tf.keras.layers.Dense(128, activation="relu")
    dense.build([None, 784])
    set_layer(dense, load_layer(mlp, "dense_layer_1"))
    weights = load_weights(mlp).arrays
    np.testing.assert_array_equal(dense.kernel, weights["dense_layer_1/kernel"])
