"""Flag files as absl names them, and what is in their place."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_dist.cli.flag_files import check_flag_files
from mnist_dist.errors import InputError


@pytest.mark.parametrize(
    "words", [["--flagfile={}"], ["-flagfile={}"], ["--flagfile", "{}"]]
)
@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "found a named pipe"),
        ("folder", "found a folder"),
        ("link to a device", "found a device"),
        ("latin-1", "expected UTF-8"),
        ("large", "found more than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_flag_file_is_refused(tmp_path, kind, message, is_nested, words):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"\xe9" if kind == "latin-1" else b"#" * (1 << 20) + b"\n")
    if is_nested:
        outer = tmp_path / "outer"
        outer.write_text(f"--seed=1\n  --flagfile={path}\n")
        path = outer
    argv = ["train", "--model_dir=run", *(word.format(path) for word in words)]
    with pytest.raises(InputError, match=message):
        check_flag_files(argv)


def test_flag_files_and_what_a_shell_opened_are_left_to_absl(tmp_path):
    loop = tmp_path / "loop"
    loop.write_text(f"# é\n--seed=1\n--flagfile={loop}\n")
    read_end, write_end = os.pipe()
    opened = f"--flagfile=/dev/fd/{read_end}"
    missing = "--flagfile=no/such"
    check_flag_files(["train", f"--flagfile={loop}", opened, missing, "--flagfile"])
    os.close(read_end)
    os.close(write_end)


@settings(max_examples=100, deadline=None, database=None)
@given(
    content=st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            ["--flagfile=", "-flagfile={}", "--flagfile", "/dev/zero", "\0", "{}"]
        )
        | st.text(max_size=8)
    ).map("\n".join)
)
def test_any_flag_file_is_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "flags")
        if isinstance(content, str):
            content = content.replace("{}", str(path)).encode()
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            check_flag_files(["train", f"--flagfile={path}"])
