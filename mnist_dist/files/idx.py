"""Read IDX files, the format in which MNIST and its relatives are published.

A header (two zero bytes, a type code, the rank, one big-endian 32-bit size per
dimension), then the values in C order. http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from typing import NamedTuple

import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import (
    MAX_IMAGES_RATIO,
    ByteStream,
    max_unpacked_bytes,
    open_file,
    quoted,
    read_payload,
)

MAX_RANK = 4

_UINT8 = 0x08
_TYPES: dict[int, np.dtype] = {
    _UINT8: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


class IdxHeader(NamedTuple):
    """What an IDX file claims to hold; `dtype` is big-endian, as it is stored."""

    shape: tuple[int, ...]
    dtype: np.dtype


def load_idx(path: str | os.PathLike[str], *, is_labels: bool = False) -> np.ndarray:
    """Loads an IDX file, plain or gzip-compressed.

    The content decides which of the two it is; a name in `.gz` must hold gzip.

    Args:
      path: the file.
      is_labels: whether integers of any type are accepted, or unsigned bytes alone.

    Returns:
      An array of rank 1 to 4 with the shape that the header gives, in the machine's
      byte order: uint8, or for labels also int8, int16 or int32.

    Raises:
      InputError: the file cannot be read, is not IDX of such values, or does not
        hold exactly the data that its header claims.
    """
    name = quoted(path)
    with open_file(path) as (file, size):
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_gzip:
            if os.fspath(path).endswith(".gz"):
                raise InputError(f"{name}: not a gzip file, though its name says so")
            return _read_array(file, max_bytes=size, name=name, is_labels=is_labels)
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                limit = max_unpacked_bytes(size, max_ratio=MAX_IMAGES_RATIO)
                return _read_array(
                    stream, max_bytes=limit, name=name, is_labels=is_labels
                )
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{name}: damaged gzip data ({error})") from error


def _read_array(
    stream: ByteStream, *, max_bytes: int, name: str, is_labels: bool
) -> np.ndarray:
    shape, dtype = read_idx_header(stream, name=name, is_labels=is_labels)
    # math.prod: Python integers do not overflow, whatever the header claims.
    num_bytes = math.prod(shape) * dtype.itemsize
    data = read_payload(stream, num_bytes=num_bytes, max_bytes=max_bytes, name=name)
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_idx_header(
    stream: ByteStream, *, name: str, is_labels: bool = False
) -> IdxHeader:
    """Reads the header of an IDX file, decompressed.

    Args:
      stream: positioned at the header.
      name: names the file in error messages.
      is_labels: whether integers of any type are accepted, or unsigned bytes alone.

    Returns:
      The shape, 1 to 4 sizes, none of them zero; and the type of the values.

    Raises:
      InputError: it is no such header.
    """
    kinds, expected, codes = "u", "unsigned bytes", "0x08"
    if is_labels:
        kinds, expected, codes = "iu", "integers", "0x08 to 0x0C"
    magic = stream.read(4)
    if len(magic) < 4:
        raise InputError(
            f"{name}: too short: found {len(magic)} bytes, an IDX header starts with 4"
        )
    zeros, type_code, rank = struct.unpack(">HBB", magic)
    dtype = _TYPES.get(type_code)
    if zeros != 0 or dtype is None or not 1 <= rank <= MAX_RANK:
        raise InputError(
            f"{name}: not an IDX file of {expected}: found magic number "
            f"0x{magic.hex()}, expected 0x00000801 to 0x0000080{MAX_RANK}"
        )
    if dtype.kind not in kinds:
        raise InputError(
            f"{name}: found values of type {dtype.name} (IDX type 0x{type_code:02X}), "
            f"expected {expected} ({codes})"
        )
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise InputError(
            f"{name}: too short: found {len(sizes)} bytes of dimensions, expected "
            f"{4 * rank}"
        )
    shape = struct.unpack(f">{rank}I", sizes)
    if 0 in shape:
        raise InputError(f"{name}: found shape {shape}, expected no zero dimension")
    return IdxHeader(shape, dtype)
