"""Read a data set in the form of Keras's `mnist.npz`: one file, four arrays."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib

import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.npy import read_npy_data, read_npy_header
from mnist_dist.files.untrusted import (
    MAX_IMAGES_RATIO,
    max_unpacked_bytes,
    open_file,
    quoted,
)

KEYS = ("x_train", "y_train", "x_test", "y_test")

# What zipfile raises on damaged files: it has no class of its own for them all.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Loads `x_train`, `y_train`, `x_test` and `y_test`; other arrays are ignored.

    Pickled objects are never loaded. `numpy.load` would do, were it not that it
    allocates what a header claims: here a claim that the file cannot hold is
    refused, and the rest is read as far as the data goes.

    Returns:
      The four arrays by name: `x_*` uint8 of rank 3 or 4, `y_*` of the integer
      type that is stored, of rank 1.

    Raises:
      InputError: the file cannot be read, is damaged, lacks an array, or holds
        one of another type or rank.
    """
    with open_file(path) as (file, size):
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename: info for info in archive.infolist()}
                missing = [key for key in KEYS if f"{key}.npy" not in members]
                if missing:
                    raise InputError(
                        f"{quoted(path)}: missing {', '.join(missing)}; found "
                        f"{', '.join(map(repr, list(members)[:8])) or 'nothing'}"
                    )
                return {
                    key: _read_array(
                        archive,
                        members[f"{key}.npy"],
                        archive_bytes=size,
                        is_images=key.startswith("x"),
                        name=f"{quoted(path)}: {key}",
                    )
                    for key in KEYS
                }
        except _ZIP_ERRORS as error:
            raise InputError(
                f"{quoted(path)}: not a zip archive that can be read ({error})"
            ) from error


def _read_array(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    *,
    archive_bytes: int,
    is_images: bool,
    name: str,
) -> np.ndarray:
    limits = {
        zipfile.ZIP_STORED: archive_bytes,
        zipfile.ZIP_DEFLATED: max_unpacked_bytes(
            archive_bytes, max_ratio=MAX_IMAGES_RATIO
        ),
    }
    if member.compress_type not in limits:
        raise InputError(
            f"{name}: found zip compression method {member.compress_type}, expected "
            "stored or deflated"
        )
    max_bytes = limits[member.compress_type]
    if member.file_size > max_bytes:
        raise InputError(
            f"{name}: the zip directory claims {member.file_size} bytes, but a file "
            f"of this size holds at most {max_bytes}"
        )
    with archive.open(member) as stream:
        header = read_npy_header(stream, name=name)
        shape, dtype = header.shape, header.dtype
        if is_images and (dtype != np.uint8 or len(shape) not in (3, 4)):
            raise InputError(
                f"{name}: found {dtype} of shape {shape}, expected images: uint8 of "
                "shape (n, height, width) or (n, height, width, channels)"
            )
        if not is_images and (dtype.kind not in "iu" or len(shape) != 1):
            raise InputError(
                f"{name}: found {dtype} of shape {shape}, expected labels: integers "
                "of shape (n,)"
            )
        if min(shape) < 1:
            raise InputError(f"{name}: found shape {shape}, expected no zero dimension")
        return read_npy_data(stream, header, max_bytes=max_bytes, name=name)
