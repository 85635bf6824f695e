"""Read one array in NumPy's `.npy` format from a stream that may lie.

`numpy.load` would do, were it not that it allocates what a header claims. Here the
header comes first, for the caller to judge; the data is then read as far as it goes.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from typing import IO, NamedTuple

import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import read_payload


class Header(NamedTuple):
    """What an array claims to be."""

    shape: tuple[int, ...]
    is_fortran_order: bool
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the data that follows."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: IO[bytes], *, name: str) -> Header:
    """Reads the header; `name` names the file, and the part of it, in errors.

    Raises:
      InputError: it is not one, or one of pickled Python objects.
    """
    try:
        # 1.0 is what NumPy writes for plain arrays; its header ends within 64 KiB.
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version")
        header = Header(*np.lib.format.read_array_header_1_0(stream))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        raise
    # NumPy evaluates the header as a Python literal; damage raises nearly anything.
    except Exception as error:
        raise InputError(f"{name}: not an array in .npy format 1.0") from error
    if header.dtype.hasobject:
        raise InputError(f"{name}: found pickled Python objects, never loaded")
    return header


def read_npy_data(
    stream: IO[bytes], header: Header, *, max_bytes: int, name: str
) -> np.ndarray:
    """Reads the array after its header, C-contiguous.

    Raises:
      InputError: more is claimed than `max_bytes`, or less or more follows.
    """
    data = read_payload(
        stream, num_bytes=header.num_bytes, max_bytes=max_bytes, name=name
    )
    array = np.frombuffer(data, dtype=header.dtype)
    return np.ascontiguousarray(
        array.reshape(header.shape, order="F" if header.is_fortran_order else "C")
    ).reshape(header.shape)
