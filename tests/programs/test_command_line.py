"""`mnist-dist VERB`: what a person sees of each program before it runs."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_mnist import small_mnist

import mnist_dist
from mnist_dist.__main__ import VERBS
from mnist_dist.cli import model_flags
from mnist_dist.run.checkpoints import load_arrays
from mnist_dist.training.options import FLAG_FIELDS

PACKAGE = Path(mnist_dist.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory whose files are named as modules that every program needs."""
    folder = tmp_path_factory.mktemp("work")
    for name in (
        "code",
        "queue",
        "typing",
        "contextlib",
        "absl",
        "tensorflow",
        # Python 3.10 imports it from the directory to run `-m`, before any of our code.
        *(["runpy"] if sys.version_info >= (3, 11) else []),
    ):
        (folder / f"{name}.py").write_text("raise SystemExit('of the directory')")
    (folder / "mine.py").write_text(
        "from mnist_dist.modeling.networks import create_cnn as create\n"
    )
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_the_manual_and_every_flag(verb, folder):
    result = subprocess.run(
        [sys.executable, "-m", "mnist_dist", verb, "--help"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.stderr == ""
    assert result.returncode == 0
    source = (PACKAGE / f"{verb}.py").read_text()
    manual = ast.get_docstring(ast.parse(source))
    assert result.stdout.startswith(manual)
    defined = re.findall(r'^(?:\w+ = )?[\w.]+\(\s*"(\w+)"', source, re.MULTILINE)
    for function in re.findall(r"model_flags\.(define_\w+)\(", source):
        shared = inspect.getsource(getattr(model_flags, function))
        defined += re.findall(r'flags\.DEFINE\w*\(\s*"(\w+)"', shared)
    if verb in ("train", "doctor"):
        defined = [*FLAG_FIELDS, *(["format"] if verb == "doctor" else [])]
    assert len(defined) >= (2 if verb == "report" else 5)
    shown = re.findall(r"^  --(?:\[no\])?(\w+)", result.stdout, re.MULTILINE)
    assert set(defined) <= set(shown)


def test_environment_changes_no_run(folder, fork_server, tmp_path):
    flags = ["--train_steps=2", "--noexport", "--noprogress", "--augment"]
    flags += [f"--data_dir={small_mnist()}", "--global_batch_size=32"]
    usual = fork_server.start(
        "mnist_dist.train", f"--model_dir={tmp_path}/usual", *flags
    )
    (tmp_path / "keras.json").write_text(
        json.dumps(
            {
                "backend": "jax",
                "floatx": "float16",
                "epsilon": 0.1,
                "image_data_format": "channels_first",
            }
        )
    )
    (tmp_path / "temporary").mkdir()
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mnist_dist.train", *flags),
            *("--model=mine:create", "--model_dir=~/run"),
        ],
        cwd=folder,
        env=os.environ
        | {
            "HOME": str(tmp_path),
            "KERAS_HOME": str(tmp_path),
            "KERAS_BACKEND": "jax",
            "TF_USE_LEGACY_KERAS": "1",
            "LC_ALL": "C",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONUTF8": "0",
            "TMPDIR": str(tmp_path / "temporary"),
        },
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert not list((tmp_path / "temporary").iterdir())  # it leaves nothing there
    assert usual.wait() == 0, usual.stderr()
    found, expected = (
        load_arrays(f"{tmp_path}/{run}/checkpoints/ckpt-2") for run in ("run", "usual")
    )
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)

    # A module that config.json alone names is not looked for in the directory.
    export = [
        sys.executable,
        "-m",
        "mnist_dist",
        "export",
        f"--model_dir={tmp_path}/run",
    ]
    results = [
        subprocess.run(command, cwd=folder, capture_output=True, text=True)
        for command in (export, [*export, "--model=mine:create"])
    ]
    assert [result.returncode for result in results] == [2, 0], results[1].stderr
    assert "config.json: --model: cannot load 'mine:create'" in results[0].stderr
    assert "or --model=mine:create on the command line" in results[0].stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PYTHONPATH": "HERE"}, "PYTHONPATH: found numpy in HERE, with which"),
        ({"KERAS_HOME": "HERE"}, "HERE/keras.json: found what Keras refuses"),
    ],
)
def test_environment_that_keeps_tensorflow_out_is_named(environment, words, tmp_path):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text(
        "raise ImportError('numpy._core._multiarray_umath is for another Python')"
    )
    (tmp_path / "keras.json").write_text('{"floatx": "float8"}')
    environment = {k: v.replace("HERE", str(tmp_path)) for k, v in environment.items()}
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] += os.pathsep + str(PACKAGE.parent)
    result = subprocess.run(
        [sys.executable, "-m", "mnist_dist.train", f"--model_dir={tmp_path}/run"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"train: error: {words.replace('HERE', str(tmp_path))}")
