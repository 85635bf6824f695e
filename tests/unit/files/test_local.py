"""What lies at a path in place of a file is told, and never waited for."""

import os
import socket

import pytest

from mnist_dist.errors import InputError
from mnist_dist.files.local import kind_at, open_to_write, read_bytes
from mnist_dist.files.untrusted import open_file, printable


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


MAKERS = {
    "a folder": lambda path: path.mkdir(),
    "a named pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_no_file_is_neither_read_nor_written(kind, tmp_path):
    path = tmp_path / "x"
    MAKERS[kind](path)
    assert kind_at(str(path), follow_links=True) == kind
    with pytest.raises(InputError, match=f"x: found {kind}, expected a regular file"):
        read_bytes(str(path), max_bytes=10)
    with (
        pytest.raises(InputError, match=f"x': found {kind}, expected a regular file"),
        open_file(path),
    ):
        pass
    found = "a link" if kind == "a device" else kind
    with pytest.raises(InputError, match=f"x: found {found}, expected a regular file"):
        open_to_write(str(path), os.O_WRONLY)


def test_files_are_read_through_links_but_not_written(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    link = tmp_path / "link"
    link.symlink_to("file")
    assert read_bytes(str(link), max_bytes=7) == b"content"
    with pytest.raises(InputError, match="link: found a link, expected a regular file"):
        open_to_write(str(link), os.O_WRONLY)
    with pytest.raises(InputError, match="link: found 7 bytes, expected at most 6"):
        read_bytes(str(link), max_bytes=6)
    for nothing in ("nothing", "file/below"):
        assert read_bytes(str(tmp_path / nothing), max_bytes=7) is None
        assert kind_at(str(tmp_path / nothing)) == ""
    with pytest.raises(InputError, match="cannot be read"):
        read_bytes("nul\0", max_bytes=7)


def test_names_are_shown_without_what_moves_a_cursor():
    assert printable("é 1\x1b[31m\r\n\t\u202e\udcff") == (
        r"é 1\x1b[31m\r\n\t\u202e\udcff"
    )
