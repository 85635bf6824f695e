"""The train program, run as a user runs it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from mnist_dist.checkpoints import list_checkpoints, load_arrays

COMMON = [
    "--model=mlp",
    "--lr_schedule=constant",
    "--dropout=0.1",
    "--enable_xla=off",
    "--eval_interval=40",
    "--checkpoint_interval=40",
    "--summary_interval=20",
]


def run_train(*flags, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "mnist_dist.train", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def train(model_dir, *flags):
    result = run_train(f"--model_dir={model_dir}", *COMMON, *flags)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
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


def assert_same_run(found_dir, expected_dir):
    found, expected = final_arrays(found_dir), final_arrays(expected_dir)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert records(found_dir) == records(expected_dir)


def test_first_output_is_the_plan_and_last_where_things_lie(undisturbed):
    model_dir, result = undisturbed
    assert result.stderr == ""
    for text in (
        "OneDeviceStrategy, 1 replica",
        "bundled MNIST: 60,000 training images 28x28x1, 10 classes",
        "128 global, 128 a replica",
        "dense_layer_1",
        "100,480",
        "test accuracy",
        f"{model_dir}/checkpoints/ckpt-120",
        f"{model_dir}/export/120",
        f"tensorboard --logdir {model_dir}",
    ):
        assert text in result.stdout
    assert sorted(p.name for p in model_dir.iterdir()) == [
        "best",
        "checkpoints",
        "config.json",
        "eval",
        "export",
        "metrics.jsonl",
        "train",
    ]


def test_saved_model_gives_the_accuracy_of_the_run_without_our_code(undisturbed, mnist):
    model_dir, _ = undisturbed
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
            f"{model_dir}/export/120",
            f"{data}/bundled",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    evaluated = [r for r in records(model_dir) if r["kind"] == "eval"][-1]
    assert int(result.stdout) == round(evaluated["accuracy"] * 10_000)
    assert evaluated["num_examples"] == 10_000


def test_run_in_two_parts_equals_the_whole_bit_for_bit(undisturbed, tmp_path):
    train(tmp_path, "--train_steps=70", "--noexport")
    os.rename(tmp_path / "metrics.jsonl", tmp_path / "kept")
    # What a run of 70 steps evaluates at its end, a run of 120 does not.
    lines = (tmp_path / "kept").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] < 70)
    )
    train(tmp_path, "--train_steps=120", "--restore=40")
    assert_same_run(tmp_path, undisturbed[0])
    aside = tmp_path / "checkpoints" / "later-than-40"
    assert sorted(p.name for p in aside.iterdir())[-1] == "ckpt-70.index"


def test_run_stopped_by_a_signal_goes_on_bit_for_bit(undisturbed, tmp_path):
    flags = [f"--model_dir={tmp_path}", *COMMON, "--train_steps=120"]
    flags += ["--steps_per_loop=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist_dist.train", *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (
        log.exists() and process.poll() is None and (tmp_path / "best").exists()
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped by SIGTERM at step" in output
    stopped_at = list_checkpoints(str(tmp_path / "checkpoints"))[0]
    assert 40 <= stopped_at < 120
    train(tmp_path, "--train_steps=120")
    assert_same_run(tmp_path, undisturbed[0])


def test_two_replicas_give_the_loss_curve_of_one(undisturbed, tmp_path):
    result = train(
        tmp_path,
        "--train_steps=120",
        "--noexport",
        "--distribution_strategy=mirrored",
        "--logical_cpus=2",
    )
    assert "MirroredStrategy, 2 replicas" in result.stdout
    assert "128 global, 64 a replica" in result.stdout
    found, expected = records(tmp_path), records(undisturbed[0])
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a["step"] == b["step"]
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3)


def write_idx(path, array, opener):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(
        n.to_bytes(4, "big") for n in array.shape
    )
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.mark.parametrize("form", ["idx", "gz", "npz"])
def test_another_data_set_needs_no_other_flag(form, tmp_path):
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


def test_dry_run_checks_and_prints_and_leaves_nothing(tmp_path):
    result = run_train(f"--model_dir={tmp_path}/run", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "1,875, 469 an epoch" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_dir="], "--model_dir: found nothing"),
        (["--train_epochs=1", "--train_steps=1"], "found both"),
        (["--train_steps=-1"], "train_steps"),
        (["--global_batch_size=0"], "global_batch_size"),
        (["--optimizer=lion"], "optimizer"),
        (["--no_such_flag"], "no_such_flag"),
        (["stray"], "unexpected argument 'stray'"),
        (["--restore=newest"], "--restore: found 'newest'"),
        (["--profile_steps=20,10"], "--profile_steps"),
        (["--model=resnet"], "--model: found 'resnet', expected mlp, cnn"),
        (["--model=no_such:thing"], "--model: cannot load 'no_such:thing'"),
        (["--data_dir=/no/such/place"], "/no/such/place"),
        (["--global_batch_size=9", "--logical_cpus=2"], "multiple of the 2 replicas"),
        (["--num_gpus=3"], "--num_gpus: found 3, expected at most"),
        (["--model_dir=/dev/null"], "--model_dir: found '/dev/null'"),
    ],
)
def test_wrong_flags_exit_2_with_one_line(flags, message, tmp_path):
    result = run_train(f"--model_dir={tmp_path}/run", *flags)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "run").exists()
