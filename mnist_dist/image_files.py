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
import io
import itertools
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_dist.data.idx import read_idx_header
from mnist_dist.data.npz import read_npy_header
from mnist_dist.data.reading import ByteStream, open_file, quoted
from mnist_dist.errors import InputError

STANDARD_INPUT = "-"
MAX_PIXELS = 1 << 26  # of one picture: decoded, a quarter of a gigabyte
MAX_ENCODED_BYTES = 1 << 28  # of one picture

# Pillow reads more; what nobody keeps digits in is only a way to be attacked.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
# A photograph is scaled down to not less than this, which leaves enough of a digit
# that fills a tenth of it.
_ENOUGH_PIXELS = 1024
_FILES_AHEAD = 64  # read while the device computes
_PIECE_BYTES = 1 << 24  # of an array, read at a time

_GZIP = b"\x1f\x8b"
_NPY = b"\x93NUM"
_IDX_START = re.compile(rb"\0\0[\x08-\x0e][\1-\xff]")

# Here, once: Pillow would do it on the first odd file, in several threads.
Image.init()


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
    batch_size: int,
    num_threads: int,
) -> Iterator[Batch | InputError]:
    """Reads files and yields their pictures in the files' order.

    Args:
      files: paths; `-` is standard input. An `InputError` among them is passed on.
      prepare: called with pictures uint8 [n, h, w] or [n, h, w, 1 or 3] and `name`,
        which names the file in errors; returns them uint8 [n, height, width,
        channels]. Called in several threads.
      batch_size: a batch has at least so many pictures, but for the last one, and
        fewer than twice as many.
      num_threads: decode so many files at a time.

    Yields:
      Batches, and for each file that is wrong an `InputError`; of an array that
      is found damaged on the way, after the pictures before the damage.
    """
    paths: list[str] = []
    indices: list[int | None] = []
    pieces: list[np.ndarray] = []
    with contextlib.closing(
        _load_ahead(
            files, prepare=prepare, piece_size=batch_size, num_threads=num_threads
        )
    ) as loaded:
        for item in loaded:
            if isinstance(item, InputError):
                yield item
                continue
            path, first, images = item
            paths += [path] * len(images)
            indices += (
                [None] if first is None else range(first, first + len(images))
            )
            pieces.append(images)
            if len(paths) >= batch_size:
                yield Batch(paths, indices, np.concatenate(pieces))
                paths, indices, pieces = [], [], []
    if paths:
        yield Batch(paths, indices, np.concatenate(pieces))


# Index of the first picture in its array, or None, and the prepared pictures.
_Pieces = Iterable[tuple[int | None, np.ndarray]]


def _load_ahead(
    files: Iterable[str | InputError],
    *,
    prepare: Callable[..., np.ndarray],
    piece_size: int,
    num_threads: int,
) -> Iterator[tuple[str, int | None, np.ndarray] | InputError]:
    files = iter(files)
    pending: collections.deque[InputError | tuple[str, Future[_Pieces]]]
    pending = collections.deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        while True:
            for file in itertools.islice(files, _FILES_AHEAD - len(pending)):
                if isinstance(file, InputError):
                    pending.append(file)
                else:
                    future = pool.submit(_load, file, prepare, piece_size)
                    pending.append((file, future))
            if not pending:
                return
            item = pending.popleft()
            if isinstance(item, InputError):
                yield item
                continue
            path, future = item
            try:
                for first, images in future.result():
                    yield path, first, images
            except InputError as error:
                yield error
    finally:
        pool.shutdown(cancel_futures=True)


def _load(path: str, prepare: Callable[..., np.ndarray], piece_size: int) -> _Pieces:
    pieces = _load_pieces(path, prepare, piece_size)
    if path == STANDARD_INPUT:
        # Not in a thread: one that waits for input would not let the program end.
        return pieces
    return itertools.chain([next(pieces)], pieces)


def _load_pieces(
    path: str, prepare: Callable[..., np.ndarray], piece_size: int
) -> Iterator[tuple[int | None, np.ndarray]]:
    name = "standard input" if path == STANDARD_INPUT else quoted(path)
    with _open(path) as file:
        stream = _Rejoined(file.read(4), file)
        if stream.head == b"":
            raise InputError(f"{name}: found nothing, expected a picture or an array")
        if stream.head[:2] == _GZIP:
            try:
                with gzip.GzipFile(fileobj=stream, mode="rb") as unzipped:  # type: ignore[call-overload]
                    arrays = _read_idx(unzipped, piece_size, name=name)
                    yield from _prepared(arrays, prepare, name=name)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InputError(f"{name}: damaged gzip data ({error})") from error
            return
        if stream.head == _NPY or _IDX_START.match(stream.head):
            read = _read_npy if stream.head == _NPY else _read_idx
            yield from _prepared(read(stream, piece_size, name=name), prepare, name=name)
            return
        data = stream.read(MAX_ENCODED_BYTES + 1)
    yield None, prepare(_decode(data, name=name)[np.newaxis], name=name)


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    if path == STANDARD_INPUT:
        yield sys.stdin.buffer
    else:
        with open_file(path) as (file, _):
            yield file


class _Rejoined:
    """A stream whose first bytes have been read, to see what it is."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self.head = head
        self._unread = head
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if not self._unread:
            return self._stream.read(size)
        start, self._unread = self._unread[:size], self._unread[size:]
        return start + self._stream.read(size - len(start))


def _prepared(
    arrays: Iterator[np.ndarray], prepare: Callable[..., np.ndarray], *, name: str
) -> Iterator[tuple[int, np.ndarray]]:
    first = 0
    for images in arrays:
        yield first, prepare(images, name=name)
        first += len(images)


def _read_idx(
    stream: ByteStream, piece_size: int, *, name: str
) -> Iterator[np.ndarray]:
    shape = read_idx_header(stream, name=name)
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] in (1, 3)):
        raise InputError(
            f"{name}: found shape {shape}, expected images of shape (n, height, width) "
            "or (n, height, width, 1 or 3 channels)"
        )
    return _read_pieces(stream, shape, piece_size, name=name)


def _read_npy(
    stream: ByteStream, piece_size: int, *, name: str
) -> Iterator[np.ndarray]:
    shape, is_fortran_order, dtype = read_npy_header(stream, name=name)
    if dtype.hasobject:
        raise InputError(f"{name}: found pickled Python objects, never loaded")
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
    return _read_pieces(stream, (1, *shape) if is_picture else shape, piece_size, name=name)


def _read_pieces(
    stream: ByteStream, shape: tuple[int, ...], piece_size: int, *, name: str
) -> Iterator[np.ndarray]:
    num_images, height, width, *_ = shape
    if height * width > MAX_PIXELS:
        raise _too_large(width, height, name=name)
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
        chunk = stream.read(num_bytes - len(data))
        if not chunk:
            break
        data += chunk
    return data


def _decode(data: bytes, *, name: str) -> np.ndarray:
    """Decodes a picture to uint8 [h, w] or [h, w, 3], large ones scaled down."""
    if len(data) > MAX_ENCODED_BYTES:
        raise InputError(
            f"{name}: found more than {MAX_ENCODED_BYTES} bytes, expected fewer"
        )
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(image.width, image.height, name=name)
            # Decodes a JPEG at a half, a quarter or an eighth: less work.
            image.draft(None, (_ENOUGH_PIXELS, _ENOUGH_PIXELS))
            image.load()
            if image.format == "PNG":
                # Pillow decodes what fits, whatever the checksums say.
                with Image.open(io.BytesIO(data), formats=["PNG"]) as unread:
                    unread.verify()
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_simplify(image, name=name))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name}: found 0x{data[:4].hex()} at its start, expected a picture "
            f"({', '.join(_FORMATS)}), .npy or IDX"
        ) from error
    # Decoders raise nearly anything on damaged data.
    except Exception as error:
        raise InputError(f"{name}: a picture that cannot be read ({error})") from error


def _simplify(image: Image.Image, *, name: str) -> Image.Image:
    """Returns the picture grey or in colour, 8 bits a channel, opaque, not large."""
    if image.mode == "F":
        raise InputError(f"{name}: found pixels of floats, expected integers")
    if image.mode.startswith("I"):  # 16 bits
        levels = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    else:
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    factor = min(image.size) // _ENOUGH_PIXELS
    if factor > 1:
        image = image.reduce(factor)
    return _lay_on_paper(image) if image.mode == "RGBA" else image


def _lay_on_paper(image: Image.Image) -> Image.Image:
    """Makes an RGBA picture opaque: on white if what is seen of it is dark, or black."""
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] < 255:
        weights = np.asarray(alpha, np.float32)
        luma = np.asarray(image.convert("L"))
        is_light = weights.any() and np.average(luma, weights=weights) > 127
        paper = Image.new("RGBA", image.size, "black" if is_light else "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def _too_large(width: int, height: int, *, name: str) -> InputError:
    return InputError(
        f"{name}: found {width}x{height} pixels, expected at most {MAX_PIXELS}"
    )
