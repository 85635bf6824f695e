"""What of a working directory can be imported, in processes of their own."""

import os
import subprocess
import sys

import pytest

needs_safe_path = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python has no safe path before 3.11"
)


def run(*arguments, cwd, **environment):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


PROGRAM = """
import sys
from mnist_dist.cli import module_path, program
from absl import flags
flags.DEFINE_string("model", "cnn", "")
sys.path.pop(0)  # of -c
def main(argv):
    print(sys.path[-1])
    print(module_path.interpreter_flags())
program.run(main)
"""


def test_working_directory_is_searched_last_for_an_own_model_alone(tmp_path):
    assert run("-c", PROGRAM, "--model=mine:f", cwd=tmp_path) == [str(tmp_path), "[]"]
    for flags in ([], ["--model=mlp"]):
        assert run("-c", PROGRAM, *flags, cwd=tmp_path)[0] != str(tmp_path)


@needs_safe_path
def test_safe_path_is_honoured_and_passed_on(tmp_path):
    program = PROGRAM.replace("sys.path.pop(0)", "")
    for flags, environment in ((["-P"], {}), ([], {"PYTHONSAFEPATH": "1"})):
        path, passed = run(
            *(*flags, "-c", program, "--model=mine:f"), cwd=tmp_path, **environment
        )
        assert path != str(tmp_path)
        assert passed == "['-P']"


def test_module_of_ours_alone_takes_the_directory_off_the_path(tmp_path):
    (tmp_path / "other.py").write_text("import mnist_dist, sys; print(sys.path[0])")
    assert run("-m", "other", cwd=tmp_path) == [str(tmp_path)]
