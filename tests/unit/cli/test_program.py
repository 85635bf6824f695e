"""What becomes of a program that nobody listens to any more."""

import os
import pty
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from absl import logging
from mnist_dist.cli import program
from mnist_dist.cli.standard_streams import ignore_write_errors
from mnist_dist.errors import InputError

def main(argv):
    with program.quiet_imports():
        pass
    for number in range(3):
        print("line \\u00e9", number, flush=number < 2)
        logging.warning("warned %s", os.environ.get("NAME", ""))
        sys.stdin.readline()
    if os.environ.get("FAIL"):
        raise InputError("--flag: found 1, expected 2 " + os.environ.get("NAME", ""))
    with open(os.environ["DONE"], "x") as file:
        file.write(str(file.fileno()))
    return 0

if os.environ.get("OUTLIVE"):
    ignore_write_errors("stdout")
program.run(main)
"""


@pytest.fixture
def start(tmp_path):
    def start(**kwargs):
        environment = os.environ | {"DONE": str(tmp_path / "done"), "OUTLIVE": "1"}
        environment |= kwargs.pop("env", {})
        environment = {k: v for k, v in environment.items() if v}
        arguments = [sys.executable, "-c", PROGRAM]
        if shell := kwargs.pop("shell", None):
            arguments = ["sh", "-c", shell, "sh", *arguments]
        return subprocess.Popen(
            arguments, env=environment, stdin=subprocess.PIPE, **kwargs
        )

    return start


@pytest.fixture
def is_done(tmp_path):
    return lambda: (tmp_path / "done").exists()


def lose_reader(process):
    """Reads one line of both, as `head -1` does, and lets the program go on."""
    for stream in (process.stdout, process.stderr):
        stream.readline()
        stream.close()
    process.stdin.write(b"\n\n\n")
    process.stdin.close()
    return process.wait(timeout=60)


def test_program_outlives_the_readers_of_its_output(start, is_done):
    process = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert lose_reader(process) == 0
    assert is_done()


def test_error_code_outlives_the_readers_too(start):
    process = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"FAIL": "1"})
    assert lose_reader(process) == 2


def test_program_outlives_its_terminal(start, is_done):
    master, slave = pty.openpty()
    process = start(stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    os.read(master, 1)
    os.close(master)  # from now on writing is EIO
    process.communicate(b"\n\n\n", timeout=60)
    assert process.returncode == 0
    assert is_done()


@pytest.mark.parametrize(
    "shell",
    ['"$@" >/dev/full 2>/dev/full', '"$@" >&-', '"$@" 2>&-', '"$@" >&- 2>&-'],
)
def test_program_outlives_a_full_disk_and_closed_outputs(start, tmp_path, shell):
    process = start(shell=shell)
    process.communicate(b"\n\n\n", timeout=60)
    assert process.returncode == 0
    # No file of the run took the place of a closed output.
    assert int((tmp_path / "done").read_text()) > 2


def test_program_whose_output_is_its_work_refuses_a_closed_one(start, is_done):
    process = start(shell='"$@" >&-', env={"OUTLIVE": ""}, stderr=subprocess.PIPE)
    _, errors = process.communicate(b"\n\n\n", timeout=60)
    assert process.returncode == 2
    assert errors.startswith(b"-c: error: standard output: found it closed, expected")
    assert not is_done()


def test_ascii_output_has_signs_escaped(start):
    process = start(stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    output, _ = process.communicate(b"\n\n\n", timeout=60)
    assert process.returncode == 0
    assert output.decode("ascii").splitlines() == [
        rf"line \xe9 {number}" for number in range(3)
    ]


def test_names_with_escape_sequences_do_not_reach_the_terminal(start):
    env = {"FAIL": "1", "NAME": "\x1b]0;title\x07"}
    process = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    _, errors = process.communicate(b"\n\n\n", timeout=60)
    assert process.returncode == 2
    assert errors.count(rb"\x1b]0;title\x07") == 4  # three warnings and the error
    assert b"\x1b" not in errors
    assert errors.startswith(rb"-c: warning: warned \x1b]0;title\x07" + b"\n")


def test_program_whose_output_is_its_work_ends_with_its_reader(start, is_done):
    process = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"OUTLIVE": ""})
    process.stdout.readline()
    process.stdout.close()
    _, errors = process.communicate(b"\n\n\n", timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors
    assert not is_done()


@pytest.mark.parametrize("fail", ["", "1"])
def test_full_disk_under_output_that_is_the_work_is_one_line(fail, start, is_done):
    with open("/dev/full", "wb") as full:
        process = start(
            stdout=full, stderr=subprocess.PIPE, env={"OUTLIVE": "", "FAIL": fail}
        )
        _, errors = process.communicate(b"\n\n\n", timeout=60)
    assert process.returncode == 1
    assert errors == b"-c: error: standard output: No space left on device\n"
    assert not is_done()


def test_full_disk_that_only_the_last_flush_meets_is_one_line():
    program = "from mnist_dist.cli import program\nprogram.run(lambda argv: print('x'))"
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE
        )
    assert result.returncode == 1
    assert result.stderr == b"-c: error: standard output: No space left on device\n"


@pytest.mark.parametrize(("error", "code"), [("InputError", 2), ("ValueError", 1)])
def test_other_error_keeps_its_exit_code_on_a_full_disk(error, code):
    program = (
        "from mnist_dist.cli import program\nfrom mnist_dist.errors import InputError\n"
        f"def main(argv):\n    print('x')\n    raise {error}('y')\nprogram.run(main)"
    )
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE
        )
    assert result.returncode == code
    assert b"No space left" not in result.stderr


def test_help_may_be_cut_short_by_its_reader():
    # Long enough that a pipe does not take it all.
    flags = "for n in range(2000): flags.DEFINE_string(f'f{n}', None, 'help ' * 20)\n"
    program = f"from absl import flags\n{flags}{PROGRAM}"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("has_memory_files", [True, False])
def test_imports_need_no_temporary_directory(has_memory_files):
    program = (
        "import os, sys, tempfile\nfrom mnist_dist.cli import program\n"
        "tempfile.tempdir = '/nothing'\n"
        f"if not {has_memory_files}:\n    del os.memfd_create\n"
        "with program.quiet_imports():\n    os.write(2, b'said\\n')\n"
        "with program.quiet_imports():\n    raise ImportError('why')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE)
    assert result.stderr.startswith(b"Traceback" if has_memory_files else b"said\n")
    assert result.stderr.endswith(b"ImportError: why\n")


@pytest.mark.parametrize("flags", [b"--name=x\xff", b"--names=a --names=x\xff"])
def test_flag_that_is_not_utf_8_is_an_input_error(flags):
    program = (
        "from absl import flags\nfrom mnist_dist.cli import program\n"
        "flags.DEFINE_string('name', None, '')\n"
        "flags.DEFINE_multi_string('names', [], '')\n"
        "program.run(lambda argv: print(ascii(argv[1:])), takes_arguments=True)\n"
    )
    command = [os.fsencode(sys.executable), b"-c", program.encode()]
    result = subprocess.run([*command, *flags.split()], stderr=subprocess.PIPE)
    assert result.returncode == 2
    name = flags.split(b"=")[0].decode()
    expected = rf"-c: error: {name}: found 'x\udcff', expected UTF-8" + "\n"
    assert result.stderr.decode() == expected
    output = subprocess.check_output([*command, b"x\xff"])  # a file of predict's
    assert output == rb"['x\udcff']" + b"\n"
