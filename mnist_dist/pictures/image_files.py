"""Read pictures from files, a stream of any length in bounded memory.

What a file is its content says, not its name: PNG, JPEG, GIF, BMP, PNM, TIFF or WebP
(one picture: the first frame), or many of one size as an array: `.npy` of unsigned
bytes, IDX or gzip-compressed IDX.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import open_file, quoted
from mnist_dist.pictures import decoding, image_arrays

STANDARD_INPUT = "-"

_FILES_AHEAD = 64  # read while the device computes


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
    tasks: collections.deque[tuple[str, Future[_Pieces]] | InputError]
    tasks = collections.deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        while True:
            for file in itertools.islice(files, _FILES_AHEAD - len(tasks)):
                if not isinstance(file, InputError):
                    task = pool.submit(_load, file, prepare, piece_size)
                tasks.append(file if isinstance(file, InputError) else (file, task))
            if not tasks:
                return
            item = tasks.popleft()
            if isinstance(item, InputError):
                yield item
                continue
            path, task = item
            try:
                for first, images in task.result():
                    yield path, first, images
            except InputError as error:
                yield error
    finally:
        pool.shutdown(cancel_futures=True)


def _load(path: str, prepare: Callable[..., np.ndarray], piece_size: int) -> _Pieces:
    """Loads a picture; an array, which may be large, only as the result is iterated."""
    # Standard input neither: a thread that waits for it would not let the program end.
    if path != STANDARD_INPUT:
        name = quoted(path)
        with open_file(path) as (file, size):
            head = file.read(4)
            if not image_arrays.is_array(head):
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
        if not image_arrays.is_array(head):
            if not head:
                raise InputError(f"{name}: found nothing, expected a picture or array")
            data = head + image_arrays.read_up_to(file, decoding.MAX_ENCODED_BYTES)
            picture = decoding.decode_picture(data, name=name)
            yield None, prepare(picture[np.newaxis], name=name)
            return
        first = 0
        for images in image_arrays.read_array(head, file, piece_size, name=name):
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
