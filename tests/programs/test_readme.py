"""The README's commands, tree and recipes, held against the code."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mnist_dist.__main__ import VERBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def find_commands():
    """Every command of ours, with all that its script adds: a verb and its arguments."""
    fence = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = "".join(fence.findall(README)).splitlines()
    lines += re.findall(r"`([^`]+)`", fence.sub("", README))
    pattern = re.compile(
        r"(?:\w+=\w* )*(launch/local\.sh|mnist-dist|sbatch)( .*)?", re.S
    )
    for found in filter(None, map(pattern.fullmatch, lines)):
        text = (found[2] or "").replace("=RANK", "=0")
        arguments = shlex.split(text, comments=True)
        if found[1] == "launch/local.sh":
            yield "train", "--model_dir=runs/mnist", *arguments
        elif found[1] == "sbatch":
            flags = arguments[arguments.index("launch/slurm.sbatch") + 1 :]
            yield "train", "--model_dir=runs/slurm", *flags
        elif arguments:
            yield tuple(arguments)


COMMANDS = sorted(set(find_commands()))

# What a verb does with its command line before it looks at files; then the run that
# `train` makes, unless it runs none.
PARSER = """
import importlib, json, sys
from mnist_dist import launch
from mnist_dist.cli import program
verb, *arguments = sys.argv[1:]
arguments, rest = launch.split_command(arguments)
if verb == "train":
    rest = arguments
else:
    module = importlib.import_module(f"mnist_dist.{verb}")
    words = program.parse([verb, *arguments])[1:]
    if verb in ("weights", "predict"):
        module.check_flags(words)
    else:
        assert not words
        if verb != "launch":
            module.check_flags()
settings = None
if verb in ("train", "launch"):
    from mnist_dist.cli import train_flags
    options = train_flags.parse(rest)
    settings = options.values()
    plan = options.plan(60_000)
    settings["steps"] = plan.total_steps
    settings["kept"] = [
        plan.total_steps - i * plan.checkpoint_interval
        for i in range(plan.max_to_keep)
    ]
assert "tensorflow" not in sys.modules
print(json.dumps(settings))
"""
# Two commands of one run may differ in these.
MOMENTARY = ("restore", "overwrite", "dry_run", "worker_hosts", "task_index")


@pytest.fixture(scope="module")
def runs():
    """What `train` is told of each directory: the settings of every command."""
    found = {}
    for command in COMMANDS:
        if command[0] in ("train", "launch") and "--help" not in command:
            settings = parse(command)
            found.setdefault(settings["model_dir"], []).append(settings)
    return found


def parse(command):
    result = subprocess.run(
        [sys.executable, "-c", PARSER, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def tree_names():
    tree = README.split("## Tree\n\n```\n")[1].split("```")[0]
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            yield folder + name
        else:
            folder = name
            yield name


def test_annotated_tree_is_the_tree():
    named = set(tree_names())
    for name in named:
        assert (ROOT / name).exists(), name
    for path in (ROOT / "mnist_dist").iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            slash = "/" if path.is_dir() else ""
            assert f"mnist_dist/{path.name}{slash}" in named


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_is_accepted(command):
    assert command[0] in VERBS
    if "--help" not in command:
        parse(command)


def test_commands_are_found():
    assert {verb for verb, *_ in COMMANDS} == VERBS.keys()
    assert len(COMMANDS) >= 25
    assert (ROOT / "launch" / "local.sh").stat().st_mode & 0o111


def test_no_two_trainings_meet_in_one_directory(runs):
    for model_dir, commands in runs.items():
        for settings in commands:
            for name, value in settings.items():
                if name not in MOMENTARY:
                    assert value == commands[0][name], (model_dir, name)


def test_steps_that_are_named_are_there(runs):
    exports = re.findall(r"(runs/\w+)/export/(\d+)", README)
    assert exports
    for model_dir, step in exports:
        assert int(step) == runs[model_dir][0]["steps"]
    reverts = [c for c in COMMANDS if c[:2] == ("weights", "revert")]
    assert reverts
    for command in reverts:
        flags = dict(flag.removeprefix("--").split("=") for flag in command[2:])
        assert int(flags["step"]) in runs[flags["model_dir"]][0]["kept"][1:]


def test_python_of_the_readme_runs(tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    folder = tmp_path / "layers" / "dense_layer_1"
    folder.mkdir(parents=True)
    kernel = np.random.default_rng(1).normal(size=(784, 128)).astype(np.float32)
    np.save(folder / "kernel.npy", kernel)
    np.save(folder / "bias.npy", np.zeros(128, np.float32))
    snippet += "import numpy as np\nnp.save('found.npy', dense.kernel)\n"
    subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), kernel)


def test_model_in_the_working_directory_is_found_by_the_console_script(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "def create(*, image_shape, num_classes):\n"
        "    flat = keras.layers.Flatten()\n"
        "    head = keras.layers.Dense(num_classes, name='head')\n"
        "    return keras.Sequential([keras.Input(image_shape), flat, head])\n"
    )
    script = Path(sys.executable).parent / "mnist-dist"
    flags = ["--model_dir=run", "--train_steps=2", "--noexport", "--noprogress"]
    result = subprocess.run(
        [sys.executable, script, "train", "--model=mine:create", *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # this checkout's package
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "ckpt-2.index").exists()


def test_links_and_other_paths_exist():
    for path in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / path).exists()


def test_verbs_are_dispatched():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "mnist_dist", *arguments],
            capture_output=True,
            text=True,
        )

    assert "train" in run("--help").stdout
    assert run("--version").stdout.startswith("mnist-dist 0.")
    wrong = run("trian")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        f"mnist-dist: error: found verb 'trian', expected {', '.join(VERBS)}\n"
    )
    without_directory = run("train")
    assert without_directory.returncode == 2
    assert without_directory.stderr.count("\n") == 1


def test_wheel_holds_the_data_and_trains_outside_the_checkout(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert sum(name.endswith("-ubyte.gz") for name in names) == 4
    assert not any(name.startswith(("tests/", "tools/")) for name in names)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mnist_dist",
            "train",
            "--model=mlp",
            "--train_steps=20",
            f"--model_dir={tmp_path}/run",
            "--noprogress",
        ],
        cwd=tmp_path / "site",
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "run" / "export" / "20" / "saved_model.pb").exists()
