"""The predict program, run as a user runs it."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from run_factory import export_untrained

from mnist_dist.cli.prediction_formats import draw_image

NUM_FILES = 1000


@pytest.fixture(scope="module")
def predict(fork_server):
    def run(*arguments, **streams):
        process = fork_server.start(
            "mnist_dist.predict", *map(str, arguments), **streams
        )
        code = process.wait()
        # Not its text: file names are bytes.
        output, errors = (
            Path(f"{process.files}.{stream}").read_bytes() for stream in ("out", "err")
        )
        return subprocess.CompletedProcess([], code, output, errors)

    return run


def predict_afresh(*arguments, **kwargs):
    """In an interpreter of its own, with the standard streams as `kwargs` say."""
    return subprocess.run(
        [sys.executable, "-m", "mnist_dist", "predict", *map(str, arguments)],
        capture_output=True,
        timeout=120,
        **kwargs,
    )


def rows(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    export_untrained(path / "export", image_shape=(28, 28, 1), num_classes=10)
    return path


@pytest.fixture(scope="module")
def serve(run_dir):
    path = str(run_dir / "export" / "0")
    return tf.saved_model.load(path).signatures["serving_default"]


@pytest.fixture(scope="module")
def png_dir(tmp_path_factory, mnist):
    path = tmp_path_factory.mktemp("png")
    for number, image in enumerate(mnist.test.images[:NUM_FILES]):
        Image.fromarray(image[..., 0]).save(path / f"{number:05d}.png")
    return path


@pytest.fixture(scope="module")
def odd_dir(tmp_path_factory, mnist):
    """Files with odd names, and one that is wrong."""
    path = tmp_path_factory.mktemp("odd")
    names = ['a,"b"', "b\nc", "c\x1b[31m", os.fsdecode(b"d\xff"), "ü"]
    for name, image in zip(names, mnist.test.images, strict=False):
        Image.fromarray(image[..., 0]).save(path / name, format="PNG")
    (path / "bb\nwrong").write_bytes(b"wrong")
    return path


def test_files_get_the_saved_models_own_answers_bit_for_bit(
    predict, run_dir, png_dir, serve, mnist
):
    flags = [f"--model_dir={run_dir}", "--format=json", "--top_k=10"]
    result = predict(*flags, "--images_per_call=100", png_dir)
    assert result.returncode == 0
    assert result.stderr == b""
    found = rows(result)
    assert [r["file"] for r in found] == sorted(map(str, png_dir.iterdir()))
    for first in range(0, NUM_FILES, 100):
        images = mnist.test.images[first : first + 100]
        answers = {k: v.numpy() for k, v in serve(tf.constant(images)).items()}
        for number, row in enumerate(found[first : first + 100]):
            assert row["index"] is None
            assert row["class"] == row["classes"][0] == answers["classes"][number]
            assert row["probability"] == row["probabilities"][0]
            assert sorted(row["classes"]) == list(range(10))
            expected = answers["probabilities"][number][row["classes"]]
            np.testing.assert_array_equal(np.float32(row["probabilities"]), expected)
            assert (np.diff(expected) <= 0).all()


def test_wrong_files_are_reported_and_the_rest_is_done(
    predict, run_dir, png_dir, tmp_path, mnist
):
    wrong = {"empty": b"", "text": b"hello", "cut.png": b"\x89PNG\r\n\x1a\n\0"}
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "images.npy", mnist.test.images[:3])
    good = [png_dir / f"{number:05d}.png" for number in range(4)]
    arguments = [
        good[0],
        tmp_path / "empty",
        tmp_path / "no such",
        good[1],
        tmp_path / "text",
        tmp_path / "images.npy",
        tmp_path / "objects.npy",
        good[2],
        tmp_path / "cut.png",
        good[3],
    ]
    result = predict(f"--export_dir={run_dir}/export", "--format=json", *arguments)
    assert result.returncode == 2
    found = [(row["file"], row["index"]) for row in rows(result)]
    assert found == [
        (str(good[0]), None),
        (str(good[1]), None),
        *((str(tmp_path / "images.npy"), index) for index in range(3)),
        (str(good[2]), None),
        (str(good[3]), None),
    ]
    lines = result.stderr.decode().splitlines()
    named = ["empty", "no such", "text", "objects.npy", "cut.png"]
    for line, name in zip(lines, named, strict=True):
        assert line.startswith(f"predict: error: '{tmp_path}/{name}': ")


def test_csv_of_an_array_from_standard_input(predict, run_dir, serve, mnist):
    data = os.path.join(os.path.dirname(sys.modules["mnist_dist"].__file__), "data")
    result = predict(
        *(f"--model_dir={run_dir}", "--format=csv", "--top_k=2", "-"),
        stdin=f"{data}/bundled/t10k-images-idx3-ubyte.gz",
    )
    assert result.returncode == 0
    header, *found = csv.reader(io.StringIO(result.stdout.decode()))
    assert header == [
        "file",
        "index",
        "class",
        "probability",
        "class_2",
        "probability_2",
    ]
    assert [row[:2] for row in found] == [["-", str(index)] for index in range(10000)]
    answers = serve(tf.constant(mnist.test.images))
    numbers = np.array([[float(value) for value in row[2:]] for row in found])
    order = np.argsort(-answers["logits"].numpy(), axis=1)[:, :2]
    np.testing.assert_array_equal(numbers[:, [0, 2]], order)
    np.testing.assert_allclose(
        numbers[:, [1, 3]],
        np.take_along_axis(answers["probabilities"].numpy(), order, axis=1),
        rtol=1e-5,  # in batches of another size, the last bits may differ
    )


def test_odd_names_come_out_as_they_are(predict, run_dir, odd_dir):
    result = predict(f"--model_dir={run_dir}", "--format=csv", odd_dir)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1
    text = result.stdout.decode(errors="surrogateescape")
    found = [row[0] for row in csv.reader(io.StringIO(text, newline=""))]
    names = sorted(p for p in odd_dir.iterdir() if p.name != "bb\nwrong")
    assert found == ["file", *map(str, names)]


def test_table_for_a_terminal_that_knows_ascii_only(run_dir, odd_dir, mnist):
    result = predict_afresh(
        *(f"--model_dir={run_dir}", "--draw", odd_dir / "ü"),
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert result.returncode == 0
    lines = result.stdout.decode("ascii").splitlines()
    drawn = draw_image(mnist.test.images[4], "ascii")
    assert [line[:14].rstrip() for line in lines] == [
        *(line.rstrip() for line in drawn),
        "",
    ]
    assert lines[0].endswith(r"/\xfc")
    assert lines[1].endswith("%")


def test_colour_model_of_another_size(predict, tmp_path):
    path = export_untrained(tmp_path / "export", image_shape=(12, 8, 3), num_classes=4)
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    Image.fromarray(images[0]).save(tmp_path / "same.png")
    large = Image.fromarray(images[1]).resize((80, 120))
    large.save(tmp_path / "large.png")
    shrunk = np.asarray(large.resize((8, 12)))

    names = [tmp_path / name for name in ("images.npy", "same.png", "large.png")]
    result = predict(f"--model_dir={tmp_path}", "--format=json", *names)
    assert result.returncode == 0
    seen = np.concatenate([images, images[:1], shrunk[np.newaxis]])
    answers = tf.saved_model.load(path).signatures["serving_default"](tf.constant(seen))
    assert [row["class"] for row in rows(result)] == answers["classes"].numpy().tolist()
    np.testing.assert_array_equal(
        np.float32([row["probability"] for row in rows(result)]),
        answers["probabilities"].numpy().max(axis=1),
    )


def test_closed_pipe_ends_it_without_a_word(run_dir, png_dir):
    command = [sys.executable, "-m", "mnist_dist.predict", f"--model_dir={run_dir}"]
    process = subprocess.Popen(
        [*command, "--format=json", "--images_per_call=10", str(png_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert json.loads(process.stdout.readline())["file"].endswith("00000.png")
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1
    process.stderr.close()


def test_full_disk_is_one_line(predict, run_dir, png_dir):
    result = predict(f"--model_dir={run_dir}", png_dir, stdout="/dev/full")
    assert result.returncode == 1
    assert result.stderr == (
        b"predict: error: standard output: No space left on device\n"
    )


def test_unreadable_standard_input_is_one_line_and_the_rest_is_done(
    predict, run_dir, png_dir, tmp_path
):
    result = predict(
        *(f"--model_dir={run_dir}", "--format=json", "-", png_dir / "00000.png"),
        stdin=str(tmp_path),
    )
    assert result.returncode == 2
    assert [row["file"] for row in rows(result)] == [str(png_dir / "00000.png")]
    assert result.stderr.endswith(
        b"error: standard input: cannot be read (Is a directory)\n"
    )
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(("stream", "name"), [("<&-", "input"), (">&-", "output")])
def test_closed_stream_is_one_line(stream, name, run_dir):
    command = f"exec {shlex.quote(sys.executable)} -m mnist_dist.predict --model_dir={run_dir} -"
    result = subprocess.run(
        ["bash", "-c", f"{command} {stream}"], stderr=subprocess.PIPE, text=True
    )
    assert result.returncode == 2
    assert f"predict: error: standard {name}: found it closed" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "--model_dir and --export_dir: found neither, expected one"),
        (["--model_dir=a", "--export_dir=b", "c"], "--export_dir: found both"),
        (["--model_dir=a"], "found no file, expected files, folders or -"),
        (["--model_dir=a", "--format=xml", "b"], "--format"),
        (["--model_dir=a", "--top_k=0", "b"], "--top_k"),
        (["--model_dir=a", "--preprocess=on", "b"], "--preprocess"),
        (["--model_dir=a", "--images_per_call=0", "b"], "--images_per_call"),
    ],
)
def test_wrong_flags_exit_2_before_tensorflow_is_imported(arguments, message):
    program = (
        "import sys, runpy\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "runpy.run_module('mnist_dist.predict', run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
