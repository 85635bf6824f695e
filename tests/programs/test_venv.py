"""tools/venv.sh, with interpreters that are scripts: nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# An interpreter: what it is asked goes to $LOG. FAILS names the ways that fail to make
# an environment; what it makes has this script as its python.
FAKE = """#!/bin/bash
echo "$NAME $*" >>"$LOG"
case "$*" in
  "-c import sys; sys.exit("*) exit "$UNSUITABLE" ;;
  "-c import sys; print"*) echo "$0" ;;
  --version) echo Python 3.12.0 ;;
  "-m pip --version") [[ $FAILS != *pip* ]] ;;
  "-m pip --quiet --python"*) ;;
  "-m pip install"*) sleep 0.2 ;;
  "-m venv --without-pip"* | "-m venv"* | "-m virtualenv"*)
    mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python"
    [[ $* == *--without-pip* || $FAILS != *"$2 "* ]] ;;
  *) exit 99 ;;
esac
"""
FAKE_UV = """#!/bin/bash
echo "uv $*" >>"$LOG"
[[ $FAILS != *uv* ]]
"""


# All that is found besides.
TOOLS = ["bash", "cat", "cksum", "cp", "find", "flock", "ls", "mkdir", "sleep"]


class Checkout:
    def __init__(self, folder):
        self.folder, self.bin, self.log = folder, folder / "bin", folder / "log"
        self.root, self.venv = folder / "checkout", folder / "checkout" / ".venv"
        self.bin.mkdir()
        self.root.mkdir()
        (self.root / "pyproject.toml").write_text("[project]\n")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def add(self, name, text=FAKE, *, is_suitable=True):
        text = text.replace("$NAME", Path(name).name)
        text = text.replace("$UNSUITABLE", str(int(not is_suitable)))
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *, extras="", then="", fails="", **environment):
        script = f'source "$1" && setup_venv "$2" "$3" && echo "$venv_python"{then}'
        arguments = [ROOT / "tools" / "venv.sh", self.root, extras]
        unset = ("PYTHON", "MNIST_DIST_VENV")
        inherited = {k: v for k, v in os.environ.items() if k not in unset}
        return subprocess.Popen(
            ["bash", "-c", script, "setup", *arguments],
            env=inherited
            | {"PATH": str(self.bin), "LOG": str(self.log), "FAILS": fails + " "}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def set_up(self, **options):
        """Returns the exit code, what was printed, and what was asked of whom."""
        self.log.write_text("")
        process = self.start(**options)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr, self.log.read_text()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_first_suitable_python_installs_once(checkout):
    checkout.add("python3.13", is_suitable=False)
    checkout.add("python3.12")
    checkout.add("python3.11")
    code, stdout, stderr, log = checkout.set_up(extras="gpu,test")
    assert (code, stdout) == (0, f"{checkout.venv}/bin/python\n"), stderr
    assert f"python3.12 -m venv {checkout.venv}" in log
    assert f"--editable {checkout.root}[gpu,test]" in log
    assert "python3.11" not in log
    _, _, stderr, log = checkout.set_up(extras="gpu,test")
    assert (stderr, log.count("-m")) == ("", 0)  # nothing to do
    _, _, _, log = checkout.set_up()
    assert (log.count("-m venv"), log.count("-m pip install")) == (0, 1)  # other extras


def test_another_pyproject_is_installed_and_a_moved_checkout_made_anew(checkout):
    checkout.add("python3.12")
    checkout.set_up()
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    _, _, _, log = checkout.set_up()
    assert (log.count("-m venv"), log.count("-m pip install")) == (0, 1)
    (checkout.venv / "stray").touch()
    checkout.root = checkout.root.rename(checkout.folder / "moved")
    checkout.venv = checkout.root / ".venv"
    code, _, _, log = checkout.set_up()
    assert (code, log.count("-m venv"), log.count("-m pip install")) == (0, 1, 1)
    assert not (checkout.venv / "stray").exists()


def test_foreign_folder_is_refused(checkout):
    checkout.add("python3.12")
    foreign = checkout.folder / "foreign"
    foreign.mkdir()
    code, _, _, _ = checkout.set_up(MNIST_DIST_VENV=str(foreign))
    assert code == 0  # an empty one is as good as none
    thesis = checkout.folder / "documents" / "thesis"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    code, _, stderr, log = checkout.set_up(MNIST_DIST_VENV=str(thesis.parent))
    assert (code, stderr.count("\n"), "-m" in log) == (2, 1, False)
    assert f"error: {thesis.parent} is not empty and not ours" in stderr
    assert list(thesis.parent.iterdir()) == [thesis]
    assert not (checkout.folder / "documents.lock").exists()


def test_environment_that_is_activated_is_not_what_it_is_made_of(checkout):
    checkout.add("python3.12")
    checkout.set_up()
    checkout.add(checkout.venv / "bin" / "python3.12", is_suitable=False)
    path = f"{checkout.venv}/bin:{checkout.bin}"
    code, _, stderr, _ = checkout.set_up(PATH=path, VIRTUAL_ENV=str(checkout.venv))
    assert (code, stderr) == (0, "")  # nothing to do


@pytest.mark.parametrize("wanted", ["python3.9", "no-such-python"])
def test_wrong_python_is_an_error_although_another_would_do(checkout, wanted):
    checkout.add("python3.12")
    checkout.add("python3.9", is_suitable=False)
    code, _, stderr, _ = checkout.set_up(PYTHON=wanted)
    assert code == 2
    assert stderr.startswith(f"setup: error: PYTHON={wanted} is no Python 3.10 to 3.13")
    assert stderr.count("\n") == 1
    assert not checkout.venv.exists()


def test_no_suitable_python(checkout):
    code, _, stderr, _ = checkout.set_up()
    assert (code, stderr.count("\n")) == (2, 1)
    assert "no Python 3.10 to 3.13 found" in stderr


@pytest.mark.parametrize(
    ("fails", "last"),
    [
        ("venv", "python3.12 -m virtualenv --quiet "),
        ("venv virtualenv", "uv venv --quiet --allow-existing --seed --python "),
        ("venv virtualenv uv", "python3.12 -m pip --quiet --python "),
    ],
)
def test_falls_back_when_a_way_fails(checkout, fails, last):
    checkout.add("python3.12")
    checkout.add("uv", FAKE_UV)
    code, _, stderr, log = checkout.set_up(fails=fails)
    assert code == 0, stderr
    made, installed = log.splitlines()[-2:]
    assert made.startswith(last)
    assert "-m pip install --quiet" in installed


def test_one_that_failed_is_made_anew(checkout):
    checkout.add("python3.12")
    code, _, stderr, _ = checkout.set_up(fails="venv virtualenv uv pip")
    assert code == 2
    assert "cannot make a virtual environment; install python3-venv" in stderr
    assert (checkout.venv / "bin").exists()  # what is left of it
    assert checkout.set_up()[0] == 0


def test_two_starts_at_once_install_once(checkout):
    checkout.add("python3.12")
    starts = [checkout.start() for _ in range(3)]
    for process in starts:
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (0, f"{checkout.venv}/bin/python\n")
    assert checkout.log.read_text().count("-m pip install") == 1, stderr


def test_pythonpath_is_kept_from_set_up_alone(checkout):
    checkout.add("python3.12", FAKE.replace("$NAME $*", "$NAME $* [$PYTHONPATH]"))
    then = '; echo "[$PYTHONPATH]"'
    _, stdout, _, log = checkout.set_up(then=then, PYTHONPATH="/mine")
    assert stdout.endswith("[/mine]\n")
    assert log
    assert "/mine" not in log
