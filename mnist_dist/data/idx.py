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
_OTHER_TYPES = {
    0x09: "int8",
    0x0B: "int16",
    0x0C: "int32",
    0x0D: "float32",
    0x0E: "float64",
}


def load_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Loads an IDX file of unsigned bytes, plain or gzip-compressed.

    The content decides which of the two it is; a name in `.gz` must hold gzip.

    Returns:
      uint8 array of rank 1 to 4 with the shape that the header gives.

    Raises:
      InputError: the file cannot be read, is not IDX of unsigned bytes, or does
        not hold exactly the data that its header claims.
    """
    name = quoted(path)
    with open_file(path) as (file, size):
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_gzip:
            if os.fspath(path).endswith(".gz"):
                raise InputError(f"{name}: not a gzip file, though its name says so")
            return _read_array(file, max_bytes=size, name=name)
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                limit = max_unpacked_bytes(size, max_ratio=MAX_IMAGES_RATIO)
                return _read_array(stream, max_bytes=limit, name=name)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{name}: damaged gzip data ({error})") from error


def _read_array(stream: ByteStream, *, max_bytes: int, name: str) -> np.ndarray:
    shape = read_idx_header(stream, name=name)
    # math.prod: Python integers do not overflow, whatever the header claims.
    data = read_payload(
        stream, num_bytes=math.prod(shape), max_bytes=max_bytes, name=name
    )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def read_idx_header(stream: ByteStream, *, name: str) -> tuple[int, ...]:
    """Reads the header of an IDX file of unsigned bytes, decompressed.

    Returns:
      The shape: 1 to 4 sizes, none of them zero.

    Raises:
      InputError: it is no such header. `name` names the file.
    """
    magic = stream.read(4)
    if len(magic) < 4:
        raise InputError(
            f"{name}: too short: found {len(magic)} bytes, an IDX header starts with 4"
        )
    zeros, type_code, rank = struct.unpack(">HBB", magic)
    if zeros == 0 and type_code in _OTHER_TYPES:
        raise InputError(
            f"{name}: found values of type {_OTHER_TYPES[type_code]} (IDX type "
            f"0x{type_code:02X}), expected unsigned bytes (0x08)"
        )
    if zeros != 0 or type_code != _UINT8 or not 1 <= rank <= MAX_RANK:
        raise InputError(
            f"{name}: not an IDX file of unsigned bytes: found magic number "
            f"0x{magic.hex()}, expected 0x00000801 to 0x0000080{MAX_RANK}"
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
    return shape
