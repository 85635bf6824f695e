"""The train program, run as a user runs it."""

import functools
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from array_checks import assert_same_bytes
from small_mnist import small_mnist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

from mnist_dist.run.checkpoints import list_checkpoints, load_arrays, save_checkpoint


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


COMMON = [
    f"--data_dir={small_mnist()}",
    "--global_batch_size=32",
    "--model=mlp",
    "--lr_schedule=constant",
    "--dropout=0.1",
    "--noaugment",  # to trace it takes a third of a start
    "--noexport",  # to export takes as long as a start
    "--enable_xla=off",
    "--eval_interval=40",
    "--checkpoint_interval=40",
    "--summary_interval=20",
]


@pytest.fixture(scope="module")
def run_train(fork_server):
    def run(*flags):
        process = fork_server.start("mnist_dist.train", *flags)
        return Result(process.wait(), process.stdout(), process.stderr())

    return run


@pytest.fixture(scope="module")
def train(run_train):
    def run(model_dir, *flags):
        result = run_train(f"--model_dir={model_dir}", *COMMON, *flags)
        assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope="module")
def start_train(fork_server):
    """Starts a training, for a test that runs several at once."""

    def start(model_dir, *flags):
        return fork_server.start(
            "mnist_dist.train", f"--model_dir={model_dir}", *COMMON, *flags
        )

    return start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, train):
    model_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    return model_dir, train(model_dir, "--train_steps=120")


def final_arrays(model_dir):
    directory = str(model_dir / "checkpoints")
    return load_arrays(f"{directory}/ckpt-{list_checkpoints(directory)[0]}")


def records(model_dir):
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    dropped = {"time", "images_per_second"}
    return [
        {k: v for k, v in json.loads(line).items() if k not in dropped}
        for line in lines
    ]


def scalars(model_dir):
    """Every point in TensorBoard's files but for speeds and memory, in order."""
    points = []
    for kind in ("train", "eval"):
        accumulator = EventAccumulator(str(model_dir / kind), {"tensors": 0}).Reload()
        for tag in accumulator.Tags()["tensors"]:
            if not tag.startswith(("images_per_second", "perf/", "memory/", "_hp")):
                points += [
                    (kind, tag, e.step, tf.make_ndarray(e.tensor_proto).item())
                    for e in accumulator.Tensors(tag)
                    if e.tensor_proto.dtype == tf.float32.as_datatype_enum
                ]
    return points


def assert_same_run(found_dir, expected_dir):
    assert_same_bytes(final_arrays(found_dir), final_arrays(expected_dir))
    assert records(found_dir) == records(expected_dir)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory, run_train):
    """A short training on the bundled data set, where nothing else is said."""
    model_dir = tmp_path_factory.mktemp("runs") / "bundled"
    flags = ["--model=mlp", "--train_steps=20"]
    return model_dir, run_train(f"--model_dir={model_dir}", *flags)


def test_first_output_is_the_plan_and_last_where_things_lie(bundled):
    model_dir, result = bundled
    assert result.returncode == 0
    assert result.stderr == ""
    for text in (
        "OneDeviceStrategy, 1 replica",
        "bundled MNIST: 60,000 training images 28x28x1, 10 classes",
        "128 global, 128 a replica",
        "dense_layer_1",
        "100,480",
        "test accuracy",
        "\ntime           0:0",
        " images/s\n",
        f"{model_dir}/metrics.jsonl",
        f"{model_dir}/checkpoints/ckpt-20",
        f"{model_dir}/export/20",
        f"tensorboard --logdir {model_dir}",
    ):
        assert text in result.stdout
    assert sorted(p.name for p in model_dir.iterdir()) == [
        ".lock",
        "best",
        "checkpoints",
        "config.flags",
        "config.json",
        "eval",
        "export",
        "metrics.jsonl",
        "train",
    ]


def test_saved_model_gives_the_accuracy_of_the_run_without_our_code(bundled):
    model_dir, _ = bundled
    program = (
        "import sys, gzip, numpy as np, tensorflow as tf\n"
        "path, data = sys.argv[1:]\n"
        "read = lambda f, n: np.frombuffer(gzip.open(data + f).read(), np.uint8)[n:]\n"
        "images = read('/t10k-images-idx3-ubyte.gz', 16).reshape(-1, 28, 28, 1)\n"
        "labels = read('/t10k-labels-idx1-ubyte.gz', 8)\n"
        "serve = tf.saved_model.load(path).signatures['serving_default']\n"
        "print(np.sum(serve(images=tf.constant(images))['classes'].numpy() == labels))\n"
        "assert not any(name.startswith('mnist_dist') for name in sys.modules)\n"
    )
    data = os.path.join(os.path.dirname(sys.modules["mnist_dist"].__file__), "data")
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            f"{model_dir}/export/20",
            f"{data}/bundled",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    evaluated = [r for r in records(model_dir) if r["kind"] == "eval"][-1]
    assert int(result.stdout) == round(evaluated["accuracy"] * 10_000)
    assert evaluated["num_examples"] == 10_000


def test_run_in_two_parts_equals_the_whole_bit_for_bit(tmp_path, train):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, "--augment", "--train_steps=120")
    train(parts, "--augment", "--train_steps=70")
    os.rename(parts / "metrics.jsonl", parts / "kept")
    # What a run of 70 steps evaluates at its end, a run of 120 does not.
    lines = (parts / "kept").read_text().splitlines(keepends=True)
    (parts / "metrics.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] < 70)
    )
    train(parts, "--augment", "--train_steps=120", "--restore=40")
    assert_same_run(parts, whole)
    aside = parts / "checkpoints" / "later-than-40"
    assert sorted(p.name for p in aside.iterdir())[-1] == "ckpt-70.index"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_run_stopped_by_a_signal_goes_on_bit_for_bit(
    name, undisturbed, fork_server, train, tmp_path
):
    for attempt in range(5):  # on a busy machine the run may end before the signal
        run = tmp_path / str(attempt)
        flags = [f"--model_dir={run}", *COMMON, "--train_steps=120"]
        process = fork_server.start("mnist_dist.train", *flags, "--steps_per_loop=1")
        process.wait_for(run / "best")
        process.kill(getattr(signal, name))
        if (code := process.wait()) != 0:
            break
    assert code == 143, process.stderr()
    assert f"stopped by {name} at step" in process.stdout()
    assert "the same command goes on from there" in process.stdout()
    stopped_at = list_checkpoints(str(run / "checkpoints"))[0]
    assert 40 <= stopped_at < 120
    train(run, "--train_steps=120")
    assert_same_run(run, undisturbed[0])


def test_signal_before_the_first_step_leaves_no_checkpoint(fork_server, tmp_path):
    process = fork_server.start("mnist_dist.train", f"--model_dir={tmp_path}", *COMMON)
    process.wait_for(tmp_path / ".lock")
    process.kill(signal.SIGTERM)
    assert process.wait() == 143, process.stderr()
    assert list_checkpoints(str(tmp_path / "checkpoints")) == []
    assert "at step 0; the same command goes on" in process.stdout()


def test_killed_8_times_a_run_ends_as_if_undisturbed(start_train, train, tmp_path):
    flags = ["--train_steps=2000", "--ema_decay=0.9"]
    flags.append("--eval_interval=200")
    whole = start_train(tmp_path / "whole", *flags)
    killed, rng = tmp_path / "killed", random.Random(1)
    directory = str(killed / "checkpoints")
    reached = [0]
    for number in range(8):
        process = start_train(killed, *flags)
        # Of four kills one anywhere, early too, and three while it trains or saves.
        if number % 4:
            deadline = time.monotonic() + 240
            while max(list_checkpoints(directory), default=0) <= reached[-1]:
                assert time.monotonic() < deadline, process.stderr()
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.2))
        else:
            time.sleep(rng.uniform(0, 2))
        process.kill(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr()
        reached.append(max(list_checkpoints(directory), default=0))
    assert reached[-1] < 2000
    assert len(set(reached)) > 5
    train(killed, *flags)
    assert whole.wait() == 0, whole.stderr()
    assert_same_run(killed, tmp_path / "whole")
    assert scalars(killed) == scalars(tmp_path / "whole")


def test_second_start_on_a_live_run_is_refused(fork_server, run_train, tmp_path):
    flags = [f"--model_dir={tmp_path}", *COMMON, "--train_steps=100000"]
    process = fork_server.start("mnist_dist.train", *flags)
    process.wait_for(tmp_path / "best")
    result = run_train(*flags)
    assert result.returncode == 2
    assert f"is being written by process {process.pid} on" in result.stderr
    process.kill(signal.SIGKILL)
    process.wait()
    # A dead run's lock does not block.
    result = run_train(*flags[:-1], "--train_steps=40")
    assert result.returncode == 0, result.stderr


def test_changed_settings_are_named_and_refused(undisturbed, run_train, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed[0], run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    changes = ["--learning_rate=0.5", "--seed=7", "--augment", "--model=cnn"]
    result = run_train(f"--model_dir={run}", *COMMON, *changes, "--train_steps=140")
    assert result.returncode == 2
    assert "--learning_rate: found 0.5, the run has 0.002" in result.stderr
    assert "--seed: found 7, the run has 1" in result.stderr
    assert "--augment: found True, the run has False" in result.stderr
    assert "--model: found 'cnn', the run has 'mlp'" in result.stderr
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert {**after, run / ".lock": b""} == {**before, run / ".lock": b""}


def test_override_and_free_changes_go_on(undisturbed, train, run_train, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    free = ["--train_steps=140", "--max_to_keep=2", "--summary_interval=7"]
    mirrored = ["--distribution_strategy=mirrored", "--logical_cpus=2"]
    train(tmp_path / "run", *free, *mirrored)
    assert int(final_arrays(tmp_path / "run")["step"]) == 140
    flags = ["--learning_rate=0.5", "--train_steps=150", "--override_config"]
    train(tmp_path / "run", *flags)
    assert int(final_arrays(tmp_path / "run")["step"]) == 150
    # Another model's checkpoint cannot be overridden.
    result = run_train(
        f"--model_dir={tmp_path}/run", *COMMON, "--model=cnn", "--override_config"
    )
    assert result.returncode == 2
    assert "is of another model or optimizer: " in result.stderr
    found = "found float32 [128], expected float32 [10]"
    assert f"model/dense_layer_1/bias: {found}" in result.stderr


def test_overwrite_starts_anew(undisturbed, train, run_train, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    flags = ["--restore=none", "--train_steps=20", "--seed=3"]
    result = run_train(f"--model_dir={tmp_path}/run", *COMMON, *flags)
    assert result.returncode == 2
    assert "--overwrite deletes them" in result.stderr
    assert list_checkpoints(str(tmp_path / "run" / "checkpoints")) == [120, 80, 40]
    train(tmp_path / "run", *flags, "--overwrite", "--export")
    assert list_checkpoints(str(tmp_path / "run" / "checkpoints")) == [20]
    assert [r["step"] for r in records(tmp_path / "run")] == [20, 20]
    assert [p.name for p in (tmp_path / "run" / "export").iterdir()] == ["20"]


def test_best_checkpoint_outlives_reverts_and_rotation(undisturbed, train, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed[0], run)
    train(run, "--train_steps=120", "--restore=80", "--max_to_keep=1")
    best = run / "best"
    step = list_checkpoints(str(best))[0]
    accuracies = {r["step"]: r["accuracy"] for r in records(run) if r["kind"] == "eval"}
    arrays = load_arrays(f"{best}/ckpt-{step}")
    assert arrays["best/accuracy"] == accuracies[step] == max(accuracies.values())


def test_not_finite_loss_ends_the_run_and_keeps_the_last_good(
    train, run_train, tmp_path
):
    train(tmp_path, "--train_steps=40", "--optimizer=sgd")
    flags = ["--optimizer=sgd", "--learning_rate=1e30", "--override_config"]
    flags += ["--train_steps=400", "--max_nonfinite_steps=30", "--max_to_keep=2"]
    flags += ["--checkpoint_interval=5"]
    result = run_train(f"--model_dir={tmp_path}", *COMMON, *flags)
    assert result.returncode == 1
    assert "were skipped, their loss or gradients were not finite" in result.stderr
    assert result.stderr.count("\n") == 1
    arrays = final_arrays(tmp_path)
    assert all(np.all(np.isfinite(array)) for array in arrays.values())
    skipped = [r.get("nonfinite_steps", 0) for r in records(tmp_path)]
    assert sum(skipped) >= 30


def test_weights_that_are_not_finite_are_no_success(run_train, tmp_path):
    flags = ["--optimizer=sgd", "--learning_rate=1e39", "--train_steps=20"]
    result = run_train(f"--model_dir={tmp_path}", *COMMON, *flags)
    assert result.returncode == 1
    assert "weights at step 20 are not finite" in result.stderr
    board = EventAccumulator(f"{tmp_path}/eval").Reload()
    ended = board.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    status = HParamsPluginData.FromString(ended).session_end_info.status
    assert status == STATUS_FAILURE
    assert list_checkpoints(str(tmp_path / "checkpoints")) == []


def test_skipped_steps_have_no_loss(run_train, tmp_path):
    flags = ["--optimizer=sgd", "--learning_rate=1e39", "--train_steps=40"]
    run_train(f"--model_dir={tmp_path}", *COMMON, *flags, "--eval_interval=400")
    last = [r for r in records(tmp_path) if r["kind"] == "train"][-1]
    assert (last["step"], last["nonfinite_steps"]) == (40, 20)
    assert (last["loss"], last["accuracy"]) == (None, None)


def test_evaluation_that_no_checkpoint_knows_counts(undisturbed, train, tmp_path):
    """Killed between the record of the evaluation and the best checkpoint."""
    model_dir = shutil.copytree(undisturbed[0], tmp_path / "run")
    shutil.rmtree(model_dir / "best")
    changed = final_arrays(model_dir) | {"best/accuracy": np.array(0.1)}
    changed |= {"best/step": np.array(80, np.int64)}
    save_checkpoint(changed, directory=str(model_dir / "checkpoints"), step=120)
    train(model_dir, "--train_steps=120")
    assert list_checkpoints(str(model_dir / "best")) == [120]
    best = load_arrays(f"{model_dir}/best/ckpt-120")
    accuracies = [r["accuracy"] for r in records(model_dir) if r["kind"] == "eval"]
    assert (best["best/step"], best["best/accuracy"]) == (120, accuracies[-1])


def test_records_that_cannot_be_read_are_found_before_anything_changes(
    undisturbed, run_train, tmp_path
):
    model_dir = shutil.copytree(undisturbed[0], tmp_path / "run")
    os.truncate(model_dir / "metrics.jsonl", (1 << 30) + 1)
    flags = ["--train_steps=120", "--restore=40"]
    result = run_train(f"--model_dir={model_dir}", *COMMON, *flags)
    assert result.returncode == 2
    assert "metrics.jsonl: found 1073741825 bytes, expected at" in result.stderr
    assert list_checkpoints(str(model_dir / "checkpoints")) == [120, 80, 40]


@pytest.mark.parametrize("flags", [[], ["--restore=none", "--overwrite"]])
def test_folders_of_another_program_are_left_alone(flags, run_train, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "events.out.tfevents.1").write_bytes(b"points of others")
    result = run_train(f"--model_dir={tmp_path}", *COMMON, "--train_steps=20", *flags)
    assert result.returncode == 2
    assert "train, but no metrics, settings or checkpoint of a run" in result.stderr
    kept = tmp_path / "train" / "events.out.tfevents.1"
    assert kept.read_bytes() == b"points of others"


@pytest.fixture(params=["tmpfs", "file size limit"])
def start_on_full_disk(request, fork_server, tmp_path):
    """A function that starts a training whose disk fills up after some checkpoints."""
    if request.param == "file size limit":
        # Checkpoints of this model have 1.2 MB; the limit is 1 MB.
        def start(*flags):
            return fork_server.start(
                "mnist_dist.train", *flags, limits={"RLIMIT_FSIZE": 1 << 20}
            )

        yield tmp_path, start
        return
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs needs root; the file size limit is tested instead")
    yield disk, functools.partial(fork_server.start, "mnist_dist.train")
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_ends_the_run_with_the_reason(start_on_full_disk, train):
    run, start = start_on_full_disk
    train(run, "--train_steps=40")
    good = final_arrays(run)
    process = start(
        f"--model_dir={run}", *COMMON, "--train_steps=400", "--max_to_keep=9"
    )
    assert process.wait() == 1
    assert "cannot be written" in process.stderr()
    assert process.stderr().count("\n") == 1
    found = load_arrays(f"{run}/checkpoints/ckpt-40")
    for name, array in good.items():
        np.testing.assert_array_equal(found[name], array)
    assert not list((run / "checkpoints").glob(".writing*"))
    assert final_arrays(run)["step"] >= 40


def test_name_with_signs_of_a_pattern_is_a_name(train, fork_server, tmp_path):
    run = tmp_path / "lr[0.1]\\*"
    for steps in (20, 40):
        train(run, f"--train_steps={steps}", "--export")
    assert [r["step"] for r in records(run) if r["kind"] == "eval"] == [20, 40]
    assert sorted(os.listdir(run / "export")) == ["20", "40"]
    process = fork_server.start("mnist_dist.export", f"--model_dir={run}")
    assert process.wait() == 0, process.stderr()


@pytest.mark.parametrize("is_deleted", [False, True])
def test_run_that_is_moved_or_deleted_ends_and_does_not_come_back(
    is_deleted, start_train, tmp_path
):
    run = tmp_path / "run"
    process = start_train(run, "--train_steps=100000", "--steps_per_loop=20")
    process.wait_for(run / "checkpoints" / "ckpt-40.index")
    run.rename(tmp_path / "elsewhere")
    if is_deleted:
        shutil.rmtree(tmp_path / "elsewhere")
    assert process.wait() == 1
    assert f"{run} was moved or deleted" in process.stderr().splitlines()[-1]
    assert process.stderr().count("error: ") == 1
    assert not run.exists()


def test_checkpoints_without_settings_need_a_flag(
    undisturbed, train, run_train, tmp_path
):
    run = shutil.copytree(undisturbed[0], tmp_path / "run")
    (run / "config.json").unlink()
    result = run_train(f"--model_dir={run}", *COMMON, "--train_steps=120")
    assert result.returncode == 2
    assert f"found checkpoints in {run} but no config.json" in result.stderr
    (run / "metrics.jsonl").unlink()
    warned = train(run, "--train_steps=120", "--override_config").stderr
    assert (
        f"train: warning: {run}/metrics.jsonl is gone, and what it had recorded: its "
        "records begin again here\n" in warned
    )


def test_read_only_directory_is_refused(undisturbed, run_train, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        make_read_only = ["mount", "-o", "remount,ro", str(disk)]
    else:
        make_read_only = ["chmod", "-R", "a-w", str(disk)]
    shutil.copytree(undisturbed[0], disk / "run")
    subprocess.run(make_read_only, check=True)
    try:
        result = run_train(f"--model_dir={disk}/run", *COMMON, "--train_steps=140")
        assert result.returncode == 2
        assert "expected a directory to write to" in result.stderr
        dry = run_train(f"--model_dir={disk}/run", *COMMON, "--dry_run")
        assert dry.returncode == 2
        assert "expected a directory to write to" in dry.stderr
        assert final_arrays(disk / "run")["step"] == 120
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True)


def test_all_checkpoints_damaged_exits_2_and_touches_nothing(
    undisturbed, run_train, tmp_path
):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    for path in [*(tmp_path / "run").rglob("ckpt-*.data*")]:
        os.truncate(path, 100)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = run_train(f"--model_dir={tmp_path}/run", *COMMON, "--train_steps=120")
    assert result.returncode == 2
    assert "checkpoints are damaged" in result.stderr.splitlines()[-1]
    lock = tmp_path / "run" / ".lock"
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {**after, lock: b""} == {**before, lock: b""}


def test_compiled_run_in_two_parts_equals_the_whole_bit_for_bit(
    start_train, train, tmp_path
):
    flags = ["--enable_xla=on", "--train_steps=120"]
    whole = start_train(tmp_path / "whole", *flags)
    train(tmp_path / "parts", *flags, "--steps_per_loop=7")
    train(tmp_path / "parts", *flags, "--restore=80")
    assert whole.wait() == 0, whole.stderr()
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_replicas_give_the_losses_of_one(start_train, tmp_path):
    """A few steps of SGD: over many, or divided by themselves, rounding errors grow."""
    flags = ["--train_steps=4", "--summary_interval=1"]
    flags += ["--optimizer=sgd", "--learning_rate=0.1"]
    several = ["--distribution_strategy=mirrored", "--logical_cpus=4"]
    one = start_train(tmp_path / "one", *flags)
    four = start_train(tmp_path / "four", *flags, *several)
    assert (one.wait(), four.wait()) == (0, 0), one.stderr() + four.stderr()
    assert "MirroredStrategy, 4 replicas" in four.stdout()
    assert "32 global, 8 a replica" in four.stdout()
    found, expected = records(tmp_path / "four"), records(tmp_path / "one")
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    losses = [r["loss"] for r in expected]
    assert losses[0] > losses[3] + 0.1
    np.testing.assert_allclose([r["loss"] for r in found], losses, rtol=1e-4)


def test_with_microbatches_a_run_on_one_replica_and_then_on_two_is_that_on_one(
    start_train, train, tmp_path
):
    flags = ["--num_microbatches=4", "--augment"]
    whole = start_train(tmp_path / "whole", *flags, "--train_steps=80")
    first = train(tmp_path / "parts", *flags, "--train_steps=40")
    assert "32 global, 32 a replica, in microbatches of 8" in first.stdout
    # Options of a run are its own: it stays the same run without the flag.
    train(tmp_path / "parts", "--augment", "--train_steps=80", "--logical_cpus=2")
    assert whole.wait() == 0, whole.stderr()
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_run_that_goes_on_with_other_threads_says_that_its_bits_are_others(
    train, tmp_path
):
    flags = ["--train_steps=80", "--intra_op_threads=2"]
    first = train(tmp_path, "--train_steps=40", "--intra_op_threads=1")
    (line,) = [
        line
        for line in train(tmp_path, *flags).stdout.splitlines()
        if line.startswith("other bits ")
    ]
    assert "intra_op_threads 1, now 2: it is no longer bit for bit" in line
    assert "device_kind" not in line
    assert "other bits" not in first.stdout + train(tmp_path, *flags).stdout
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["resolved"]["intra_op_threads"] == 2


def test_run_of_an_earlier_version_goes_on(run_train, tmp_path):
    golden = Path(__file__).parent / "golden"
    shutil.copytree(golden / "run", tmp_path / "run")
    flags = ["--model=mlp", "--global_batch_size=4", "--dtype=float16"]
    flags += ["--optimizer=adamw", "--ema_decay=0.9", "--lr_schedule=constant"]
    result = run_train(
        f"--model_dir={tmp_path}/run",
        f"--data_dir={golden}/data",
        *flags,
        "--train_steps=4",
    )
    assert (result.returncode, result.stderr) == (0, "")
    arrays = final_arrays(tmp_path / "run")
    assert arrays["step"] == 4
    # One more step from where it was: Adam's own bound on how far a weight moves.
    before = final_arrays(golden / "run")
    for name in before:
        if name.startswith("model/"):
            moved = np.max(np.abs(arrays[name] - before[name]))
            assert 0 < moved < 3 * 0.002, name
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3, 3, 4, 4]


def test_target_accuracy_ends_the_run_at_the_first_evaluation_with_it(train, tmp_path):
    train(tmp_path, "--target_accuracy=0.6", "--eval_interval=10", "--export")
    accuracies = [r["accuracy"] for r in records(tmp_path) if r["kind"] == "eval"]
    assert accuracies[-1] >= 0.6
    assert all(accuracy < 0.6 for accuracy in accuracies[:-1])
    step = 10 * len(accuracies)
    assert list_checkpoints(str(tmp_path / "checkpoints"))[0] == step
    assert (tmp_path / "export" / str(step) / "saved_model.pb").exists()


def test_patience_ends_a_run_that_does_not_improve(train, tmp_path):
    flags = ["--learning_rate=0", "--early_stopping_patience=2", "--eval_interval=10"]
    train(tmp_path, *flags)
    steps = [r["step"] for r in records(tmp_path) if r["kind"] == "eval"]
    assert steps == [10, 20, 30]


def test_warm_start_takes_the_average_of_the_weights_and_nothing_else(
    undisturbed, train, tmp_path
):
    source = f"{undisturbed[0]}/checkpoints/ckpt-80"
    flags = ["--learning_rate=0", "--train_steps=3", "--optimizer=sgd"]
    train(tmp_path, *flags, f"--init_from={source}")
    found, expected = final_arrays(tmp_path), load_arrays(source)
    assert found["step"] == 3
    weights = [name for name in expected if name.startswith("model/")]
    assert len(weights) == 4
    for name in weights:
        average = expected[name.replace("model/", "ema/")]
        assert not np.array_equal(average, expected[name])
        np.testing.assert_array_equal(found[name], average)
    again = train(tmp_path, *flags, "--init_from=no/such").stdout
    assert "init_from      is not read: the run goes on with its own weights\n" in again


def test_profile_of_the_named_steps_lies_where_tensorboard_looks(train, tmp_path):
    train(tmp_path, "--train_steps=40", "--profile_steps=10,20")
    (path,) = tmp_path.glob("train/plugins/profile/*/*.xplane.pb")
    # Each step has its mark, by which the profile plugin tells its time.
    space = XSpace.FromString(path.read_bytes())
    marked = {
        stat.int64_value
        for plane in space.planes
        for line in plane.lines
        for event in line.events
        if plane.event_metadata[event.metadata_id].name == "train"
        for stat in event.stats
        if plane.stat_metadata[stat.metadata_id].name == "step_num"
    }
    assert marked == set(range(10, 20))
    # The plugin would take the iterations of a loop for the steps.
    names = {
        plane.stat_metadata[stat.metadata_id].name
        for plane in space.planes
        for line in plane.lines
        for event in line.events
        for stat in event.stats
    }
    assert "step_num" in names
    assert "iter_num" not in names
    # The operations of the step, as TensorFlow's runtime has recorded them.
    trace = path.read_bytes()
    assert b"MatMul" in trace
    assert b"/host:CPU" in trace


def test_run_that_stopped_while_it_was_profiled_goes_on(train, tmp_path):
    flags = ["--profile_steps=10,30"]
    train(tmp_path, "--train_steps=20", *flags)
    assert len(list(tmp_path.glob("train/plugins/profile/*/*.xplane.pb"))) == 1
    train(tmp_path, "--train_steps=40", *flags)
    assert final_arrays(tmp_path)["step"] == 40


def test_restart_by_a_launcher_overwrites_and_reverts_only_once(fork_server, tmp_path):
    def start(launch, *flags):
        process = fork_server.start(
            "mnist_dist.train",
            f"--model_dir={tmp_path}",
            *COMMON,
            *flags,
            environment={"MNIST_DIST_LAUNCH": launch},
        )
        assert process.wait() == 0, process.stderr()
        return [r["step"] for r in records(tmp_path) if r["kind"] == "eval"]

    anew = ["--restore=none", "--overwrite"]
    assert start("first", "--train_steps=40") == [40]
    assert start("second", *anew, "--train_steps=20") == [20]
    assert start("second", *anew, "--train_steps=80") == [20, 40, 80]
    assert start("third", "--restore=20", "--train_steps=20") == [20]
    assert start("third", "--restore=20", "--train_steps=60") == [20, 40, 60]
    assert start("third", "--restore=20", "--train_steps=80") == [20, 40, 60, 80]


def test_deterministic_runs_are_equal_on_several_replicas_too(start_train, tmp_path):
    flags = ["--train_steps=40", "--deterministic", "--logical_cpus=2", "--augment"]
    runs = [start_train(tmp_path / name, *flags) for name in ("one", "two")]
    for process in runs:
        assert process.wait() == 0, process.stderr()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_validation_examples_are_evaluated_and_not_trained_on(train, tmp_path):
    flags = ["--validation_examples=100", "--train_steps=40"]
    result = train(tmp_path, *flags)
    assert "3,900 training images" in result.stdout
    assert "validation accuracy" in result.stdout
    evaluated = [r for r in records(tmp_path) if r["kind"] == "eval"]
    assert [(r["split"], r["num_examples"]) for r in evaluated] == [("validation", 100)]


def write_idx(path, array, opener):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(
        n.to_bytes(4, "big") for n in array.shape
    )
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.mark.parametrize("form", ["idx", "gz", "npz"])
def test_another_data_set_needs_no_other_flag(form, tmp_path, run_train):
    rng = np.random.default_rng(0)
    shape = (14, 20) if form != "npz" else (16, 16, 3)
    arrays = {
        "x_train": rng.integers(0, 256, (300, *shape), np.uint8),
        "y_train": rng.integers(0, 7, 300).astype(np.uint8),
        "x_test": rng.integers(0, 256, (50, *shape), np.uint8),
        "y_test": np.arange(50).astype(np.uint8) % 7,
    }
    data = tmp_path / "data"
    data.mkdir()
    if form == "npz":
        np.savez(data / "mnist.npz", **arrays)
    else:
        suffix, opener = (".gz", gzip.open) if form == "gz" else ("", open)
        names = {
            "x_train": "train-images-idx3-ubyte",
            "y_train": "train-labels-idx1-ubyte",
            "x_test": "t10k-images-idx3-ubyte",
            "y_test": "t10k-labels-idx1-ubyte",
        }
        for key, name in names.items():
            write_idx(str(data / (name + suffix)), arrays[key], opener)
    result = run_train(f"--model_dir={tmp_path}/run", f"--data_dir={data}")
    assert result.returncode == 0, result.stderr
    assert "7 classes" in result.stdout
    exports = list((tmp_path / "run" / "export").iterdir())
    model = tf.saved_model.load(str(exports[0]))
    serve = model.signatures["serving_default"]
    images = arrays["x_test"].reshape(50, *shape[:2], -1)
    assert serve(images=tf.constant(images))["logits"].shape == (50, 7)


def test_dry_run_checks_and_prints_and_leaves_nothing(tmp_path, run_train):
    result = run_train(f"--model_dir={tmp_path}/run", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "1,875, 469 an epoch" in result.stdout
    assert result.stdout.endswith(
        "\ndry run        a step, an evaluation and the export were tried, and no file "
        "was changed\n"
    )
    assert not (tmp_path / "run").exists()


def test_run_with_statistics_computed_anew_goes_on_bit_for_bit(tmp_path, train):
    flags = ["--model=custom_models:create_mixed", "--dropout=0", "--eval_interval=20"]
    flags += ["--statistics_batches=3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, *flags, "--train_steps=40")
    train(cut, *flags, "--train_steps=20")
    train(cut, *flags, "--train_steps=40")
    assert_same_run(cut, whole)
    # The moved ones begin at 0, of which 0.99^40, two thirds, is left.
    arrays = final_arrays(whole)
    moved, anew = (arrays[f"{k}/norm/moving_mean"] for k in ("model", "ema"))
    assert np.linalg.norm(anew) > 2 * np.linalg.norm(moved)
