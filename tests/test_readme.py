"""The README's commands, tree and recipes, held against the code."""

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mnist_dist.__main__ import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"launch/local\.sh[^`\n;]*", README)))


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


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_of_the_commands_are_accepted(command):
    script, *flags = shlex.split(command)
    assert (ROOT / script).stat().st_mode & 0o111
    program = (
        "import sys\n"
        "from mnist_dist.train_flags import FLAGS, check_flags\n"
        "FLAGS(['train', '--model_dir=runs/mnist', *sys.argv[1:]])\n"
        "check_flags()\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, *flags], cwd=ROOT, check=True)


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
