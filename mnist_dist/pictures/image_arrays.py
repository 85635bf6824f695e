"""Read images from files that hold many as an array: `.npy`, IDX, gzipped IDX.

They come in pieces of bounded size, whatever the header claims.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.idx import read_idx_header
from mnist_dist.files.npy import read_npy_header
from mnist_dist.files.untrusted import ByteStream
from mnist_dist.pictures import decoding

_PIECE_BYTES = 1 << 24  # of an array, prepared at a time
_CHUNK_BYTES = 1 << 18  # set aside before it is known to be there

_GZIP = b"\x1f\x8b"
_NPY = b"\x93NUM"
_IDX = re.compile(rb"\0\0[\x08-\x0e][\1-\xff]")


def is_array(head: bytes) -> bool:
    """Returns whether a file that begins with these four bytes holds an array."""
    return head[:2] == _GZIP or head == _NPY or _IDX.match(head) is not None


def read_array(
    head: bytes, file: IO[bytes], piece_size: int, *, name: str
) -> Iterator[np.ndarray]:
    """Yields the images of an array, at most `piece_size` at a time.

    Args:
      head: the file's first four bytes, which have been read.
      file: the rest of it.
      piece_size: images; fewer where they are large.
      name: names the file in errors.

    Yields:
      uint8 [n, height, width] or [n, height, width, 1 or 3]; of an array [h, w], which
      is one picture or has a flat one in each row, [1, h, w].

    Raises:
      InputError: it is damaged or not of images; what stands before the damage has
        been given.
    """
    stream = _Rejoined(head, file)
    if head == _NPY:
        yield from _read_npy(stream, piece_size, name=name)
    elif head[:2] != _GZIP:
        yield from _read_idx(stream, piece_size, name=name)
    else:
        try:
            # GzipFile only ever reads from it.
            with gzip.GzipFile(fileobj=stream, mode="rb") as unzipped:  # type: ignore[call-overload]
                yield from _read_idx(unzipped, piece_size, name=name)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{name}: damaged gzip data ({error})") from error


class _Rejoined:
    """A stream whose first bytes have been read, to see what it is."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._unread = head
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        if not self._unread:
            return self._stream.read(size)
        start, self._unread = self._unread[:size], self._unread[size:]
        return start + self._stream.read(size - len(start))


def _read_idx(
    stream: ByteStream, piece_size: int, *, name: str
) -> Iterator[np.ndarray]:
    shape, _ = read_idx_header(stream, name=name)
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] in (1, 3)):
        raise InputError(
            f"{name}: found shape {shape}, expected images of shape (n, height, width) "
            "or (n, height, width, 1 or 3 channels)"
        )
    return _read_pieces(stream, shape, piece_size, name=name)


def _read_npy(
    stream: ByteStream, piece_size: int, *, name: str
) -> Iterator[np.ndarray]:
    shape, is_fortran_order, dtype = read_npy_header(
        stream,  # type: ignore[arg-type]  # it only ever reads from it
        name=name,
    )
    is_picture = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    is_batch = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not (is_picture or is_batch) or min(shape) < 1:
        raise InputError(
            f"{name}: found {dtype} of shape {shape}, expected images: uint8 of shape "
            "([n,] height, width[, 1 or 3 channels]), no dimension zero"
        )
    if is_fortran_order:
        raise InputError(
            f"{name}: found values in Fortran order, expected C order "
            "(numpy.ascontiguousarray)"
        )
    if len(shape) == 2:
        # One picture, or many flat ones: whoever prepares them knows the model's size.
        return (p[0] for p in _read_pieces(stream, (1, *shape), piece_size, name=name))
    return _read_pieces(
        stream, (1, *shape) if is_picture else shape, piece_size, name=name
    )


def _read_pieces(
    stream: ByteStream, shape: tuple[int, ...], piece_size: int, *, name: str
) -> Iterator[np.ndarray]:
    num_images, height, width, *_ = shape
    if height * width > decoding.MAX_PIXELS:
        raise decoding.too_large(width, height, name=name)
    image_bytes = math.prod(shape[1:])
    step = max(min(piece_size, _PIECE_BYTES // image_bytes), 1)
    for first in range(0, num_images, step):
        wanted = min(step, num_images - first) * image_bytes
        data = read_up_to(stream, wanted)
        whole = len(data) // image_bytes
        if whole:
            values = np.frombuffer(data, np.uint8, count=whole * image_bytes)
            yield values.reshape(whole, *shape[1:])
        if len(data) < wanted:
            raise InputError(
                f"{name}: too short: found {first + whole} whole images, the header "
                f"claims {num_images}"
            )
    # Reading on to the end also makes gzip verify its checksum.
    if stream.read(1):
        raise InputError(
            f"{name}: trailing bytes after the {num_images} images that the header "
            "claims"
        )


def read_up_to(stream: ByteStream, num_bytes: int) -> bytearray:
    """Reads so many bytes, or those that there are, in small chunks."""
    data = bytearray()
    while len(data) < num_bytes:
        chunk = stream.read(min(num_bytes - len(data), _CHUNK_BYTES))
        if not chunk:
            break
        data += chunk
    return data
