"""Read files whose headers may lie, in memory proportional to the file itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Protocol

from mnist_dist.errors import InputError
from mnist_dist.files.local import kind_at

# Small files may be all zeros, which deflate packs a thousandfold.
_MIN_LIMIT = 1 << 26
_CHUNK_BYTES = 1 << 18

MAX_IMAGES_RATIO = 128  # of images: drawings in black and white


class ByteStream(Protocol):
    """What is read from: a plain file, or a member of a gzip or zip file."""

    def read(self, size: int, /) -> bytes:
        """Returns `size` bytes, or fewer at the end."""


def quoted(path: str | os.PathLike[str]) -> str:
    """Returns `path` for an error message: on one line whatever is in it."""
    return repr(os.fspath(path))


def printable(text: str) -> str:
    """Returns text for a terminal: what would move its cursor is shown escaped."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode()
        for sign in text
    )


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], int]]:
    """Opens a regular, non-empty file; yields it and its size in bytes.

    Raises:
      InputError: it is missing, unreadable, empty or not a regular file, or
        reading it within the `with` block fails in the operating system.
    """
    try:
        os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise _cannot_read(path, error) from error
    # Asked before opening: opening a named pipe would wait for a writer.
    if (kind := kind_at(os.fspath(path), follow_links=True)) != "a file":
        raise InputError(f"{quoted(path)}: found {kind}, expected a regular file")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise InputError(f"{quoted(path)}: the file is empty")
            yield file, size
    except OSError as error:
        raise _cannot_read(path, error) from error


def max_unpacked_bytes(packed_bytes: int, *, max_ratio: int) -> int:
    """Returns how much a compressed file of this size may hold before it is a bomb.

    Args:
      packed_bytes: size of the file.
      max_ratio: what honest content of its kind is packed by at most.
    """
    return max(_MIN_LIMIT, max_ratio * packed_bytes)


def _cannot_read(path: str | os.PathLike[str], error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{quoted(path)}: cannot be read ({reason})")


def read_payload(
    stream: ByteStream, *, num_bytes: int, max_bytes: int, name: str
) -> bytearray:
    """Reads the `num_bytes` that a header claims, and checks that nothing follows.

    Args:
      stream: positioned after the header.
      num_bytes: what the header claims.
      max_bytes: what the file can hold at most; a larger claim is refused unread.
      name: names the file, and the part of it, in error messages.

    Raises:
      InputError: the stream holds fewer or more bytes.
    """
    if num_bytes > max_bytes:
        raise InputError(
            f"{name}: the header claims {num_bytes} bytes of data, but a file of "
            f"this size holds at most {max_bytes}"
        )
    # Grown as the data comes: a claim alone allocates nothing.
    data = bytearray()
    while len(data) < num_bytes:
        chunk = stream.read(min(_CHUNK_BYTES, num_bytes - len(data)))
        if not chunk:
            raise InputError(
                f"{name}: too short: found {len(data)} bytes of data, the header "
                f"claims {num_bytes}"
            )
        data += chunk
    # Reading on to the end also makes gzip and zip verify their checksums.
    if stream.read(1):
        raise InputError(
            f"{name}: trailing bytes after the {num_bytes} bytes of data that the "
            "header claims"
        )
    return data
