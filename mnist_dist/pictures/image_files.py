"""Read pictures from files, a stream of any length in bounded memory.

What a file is its content says, not its name: PNG, JPEG, GIF, BMP, PNM, TIFF or WebP
(one picture: the first frame), or many of one size as an array: `.npy` of unsigned
bytes, IDX or gzip-compressed IDX.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import itertools
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.idx import read_idx_header
from mnist_dist.files.npy import read_npy_header
from mnist_dist.files.untrusted import ByteStream, open_file, quoted
from mnist_dist.pictures import decoding

STANDARD_INPUT = "-"

# What is read while the device computes.
_TASKS_AHEAD = 8
_FILES_A_TASK = 16
_PIECE_BYTES = 1 << 24  # of an array, prepared at a time
_CHUNK_BYTES = 1 << 18  # set aside before it is known to be there

_GZIP = b"\x1f\x8b"
_NPY = b"\x93NUM"
_IDX = re.compile(rb"\0\0[\x08-\x0e][\1-\xff]")


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Pictures from one or several files, in the form a model takes.

    Attributes:
      files: for each picture, the path of its file; `-` is standard input.
      indices: for each picture, its index in the array that the file holds; None if
        the file is a picture.
      images: uint8 [n, height, width, channels].
    """

    files: list[str]
    indices: list[int | None]
    images: np.ndarray


def find_files(names: Iterable[str]) -> Iterator[str | InputError]:
    """Yields the files that are meant, in order.

    A folder means all files in it and in its folders, in the order of their names,
    but for those whose name begins with a dot; links to folders are not followed.
    Anything else means itself. A folder that cannot be read or has no file is an
    `InputError` in its place.
    """
    for name in names:
        if name == STANDARD_INPUT or not os.path.isdir(name):
            yield name
            continue
        errors: list[OSError] = []
        is_empty = True
        for folder, folders, files in os.walk(name, onerror=errors.append):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in sorted(files):
                if not file.startswith("."):
                    is_empty = False
                    yield os.path.join(folder, file)
        for error in errors:
            yield InputError(f"{quoted(error.filename)}: {error.strerror}")
        if is_empty and not errors:
            yield InputError(f"{quoted(name)}: found no files in this folder")


def read_batches(
    files: Iterable[str | InputError],
    *,
    prepare: Callable[..., np.ndarray],
    images_per_batch: int,
    num_threads: int,
) -> Iterator[Batch | InputError]:
    """Reads files and yields their pictures in the files' order.

    Args:
      files: paths; `-` is standard input. An `InputError` among them is passed on.
      prepare: called with pictures uint8 [n, h, w] or [n, h, w, 1 or 3], or with an
        array [h, w] that is one picture or has a flat one in each row, and `name`,
        which names the file in errors; returns them uint8 [n, height, width,
        channels]. Called in several threads.
      images_per_batch: a batch has at least so many pictures, but for the last and those
        before an error, and fewer than twice as many.
      num_threads: decode so many files at a time.

    Yields:
      Batches, and in the place of each file that is wrong an `InputError`; of an
      array that is damaged further on, behind its pictures before the damage.
    """
    paths: list[str] = []
    indices: list[int | None] = []
    pieces: list[np.ndarray] = []

    def take_batch() -> Batch:
        batch = Batch(paths[:], indices[:], np.concatenate(pieces))
        for collected in (paths, indices, pieces):
            collected.clear()
        return batch

    with contextlib.closing(
        _load_ahead(
            files, prepare=prepare, piece_size=images_per_batch, num_threads=num_threads
        )
    ) as loaded:
        for item in loaded:
            if isinstance(item, InputError):
                if paths:
                    yield take_batch()
                yield item
                continue
            path, first, images = item
            paths += [path] * len(images)
            indices += [None] if first is None else range(first, first + len(images))
            pieces.append(images)
            if len(paths) >= images_per_batch:
                yield take_batch()
    if paths:
        yield take_batch()


# Index of the first picture in its array, or None, and the prepared pictures.
_Pieces = Iterable[tuple[int | None, np.ndarray]]


def _load_ahead(
    files: Iterable[str | InputError],
    *,
    prepare: Callable[..., np.ndarray],
    piece_size: int,
    num_threads: int,
) -> Generator[tuple[str, int | None, np.ndarray] | InputError, None, None]:
    """Yields path, index and prepared pictures, in order, while threads read ahead."""
    files = iter(files)
    num_taken = 0
    tasks: collections.deque[Future[list[tuple[str, _Pieces] | InputError]]]
    tasks = collections.deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        while True:
            while len(tasks) < _TASKS_AHEAD:
                # Handing over a small file costs as much as reading it; a few large
                # ones must not all go to one thread. So: one, one, ..., then more.
                size = min(1 + num_taken // 16, _FILES_A_TASK)
                taken = list(itertools.islice(files, size))
                if not taken:
                    break
                num_taken += len(taken)
                tasks.append(pool.submit(_load_all, taken, prepare, piece_size))
            if not tasks:
                return
            for item in tasks.popleft().result():
                if isinstance(item, InputError):
                    yield item
                    continue
                path, pieces = item
                try:
                    for first, images in pieces:
                        yield path, first, images
                except InputError as error:
                    yield error
    finally:
        pool.shutdown(cancel_futures=True)


def _load_all(
    files: list[str | InputError],
    prepare: Callable[..., np.ndarray],
    piece_size: int,
) -> list[tuple[str, _Pieces] | InputError]:
    loaded: list[tuple[str, _Pieces] | InputError] = []
    for file in files:
        if isinstance(file, InputError):
            loaded.append(file)
            continue
        try:
            loaded.append((file, _load(file, prepare, piece_size)))
        except InputError as error:
            loaded.append(error)
    return loaded


def _load(path: str, prepare: Callable[..., np.ndarray], piece_size: int) -> _Pieces:
    """Loads a picture; an array, which may be large, only as the result is iterated."""
    # Standard input neither: a thread that waits for it would not let the program end.
    if path != STANDARD_INPUT:
        name = quoted(path)
        with open_file(path) as (file, size):
            head = file.read(4)
            if not _is_array(head):
                # Not more than it may be: reading sets aside what is asked for.
                data = head + file.read(min(size, decoding.MAX_ENCODED_BYTES))
                picture = decoding.decode_picture(data, name=name)
                return [(None, prepare(picture[np.newaxis], name=name))]
    return _load_lazily(path, prepare, piece_size)


def _load_lazily(
    path: str, prepare: Callable[..., np.ndarray], piece_size: int
) -> Iterator[tuple[int | None, np.ndarray]]:
    name = "standard input" if path == STANDARD_INPUT else quoted(path)
    with _open(path) as file:
        head = file.read(4)
        if not _is_array(head):
            if not head:
                raise InputError(f"{name}: found nothing, expected a picture or array")
            data = head + _read_up_to(file, decoding.MAX_ENCODED_BYTES)
            picture = decoding.decode_picture(data, name=name)
            yield None, prepare(picture[np.newaxis], name=name)
            return
        first = 0
        for images in _read_array(head, file, piece_size, name=name):
            yield first, prepare(images, name=name)
            first += len(images)


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise InputError("standard input: found it closed, expected a file")
        try:
            yield sys.stdin.buffer
        except OSError as error:  # as when it is a directory, `predict - < folder`
            raise InputError(
                f"standard input: cannot be read ({error.strerror or error})"
            ) from error
    else:
        with open_file(path) as (file, _):
            yield file


def _is_array(head: bytes) -> bool:
    return head[:2] == _GZIP or head == _NPY or _IDX.match(head) is not None


def _read_array(
    head: bytes, file: IO[bytes], piece_size: int, *, name: str
) -> Iterator[np.ndarray]:
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
        data = _read_up_to(stream, wanted)
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


def _read_up_to(stream: ByteStream, num_bytes: int) -> bytearray:
    data = bytearray()
    while len(data) < num_bytes:
        chunk = stream.read(min(num_bytes - len(data), _CHUNK_BYTES))
        if not chunk:
            break
        data += chunk
    return data
