"""Layer files: named arrays <-> one `.npz` file, or a folder of `.npy` files.

An array is named `<layer>/<weight>`. That is its key in the `.npz`, and the path of
its `.npy` in the folder, so `numpy.load` reads both without this code. Pickles are
never loaded, and a damaged or hostile file costs no more than a small multiple of its
own size.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO

import numpy as np

from mnist_dist.errors import InputError, RunError
from mnist_dist.files.arrays import Arrays
from mnist_dist.files.durable import FILE_ERRORS, describe_error, publishing
from mnist_dist.files.npy import read_npy_data, read_npy_header
from mnist_dist.files.untrusted import max_unpacked_bytes, open_file, quoted

MAX_WEIGHTS_RATIO = 16  # trained weights hardly compress
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no fault of what is asked for
_MAX_FOLDERS, _MAX_DEPTH = 10_000, 8
# What zipfile raises on damaged files: it has no class of its own for them all.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def check_name(name: str, *, where: str) -> str:
    """Returns `name` if it is `<layer>/<weight>` and can be a path in a folder.

    Raises:
      InputError: a part of it is empty, `.`, `..`, not printable or too long, or
        there is only one.
    """
    parts = name.split("/")
    if len(parts) < 2 or not all(map(_is_plain, parts)):
        raise InputError(
            f"{where}: found the name {name!r}, expected <layer>/<weight> in plain "
            "characters, without '..'"
        )
    return name


def check_layer(layer: str, *, where: str) -> str:
    """Returns `layer` if it can be a layer's name; a nested one's has slashes.

    Raises:
      InputError: as for `check_name`.
    """
    if not all(map(_is_plain, layer.split("/"))):
        raise InputError(
            f"{where}: found the layer name {layer!r}, expected plain characters, "
            "without '..' and without '/' at an end"
        )
    return layer


def load_npz(path: str) -> Arrays:
    """Reads a layer file.

    Raises:
      InputError: it is not an `.npz` of numeric arrays with keys `<layer>/<weight>`,
        it is damaged, or it claims to unpack to far more than its size.
    """
    arrays: Arrays = {}
    with open_file(path) as (file, size):
        left = max_unpacked_bytes(size, max_ratio=MAX_WEIGHTS_RATIO)
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    # zipfile cuts `filename` at a NUL.
                    name = member.orig_filename.removesuffix(".npy")
                    check_name(name, where=quoted(path))
                    if name in arrays or name == member.orig_filename:
                        raise InputError(
                            f"{quoted(path)}: found the member "
                            f"{member.orig_filename!r}, expected each "
                            "<layer>/<weight>.npy once"
                        )
                    with archive.open(member) as stream:
                        arrays[name] = _read_array(
                            stream, max_bytes=left, name=f"{quoted(path)}: {name}"
                        )
                    left -= arrays[name].nbytes
        except _ZIP_ERRORS as error:
            raise InputError(
                f"{quoted(path)}: not an .npz archive that can be read ({error})"
            ) from error
    return arrays


def load_folder(path: str) -> Arrays:
    """Reads all `<layer>/<weight>.npy` in a folder; links to folders are not followed.

    Raises:
      InputError: a `.npy` file is not a numeric array, or the folder is too large or
        deep to be one of layers.
    """
    arrays: Arrays = {}
    for number, (folder, folders, files) in enumerate(os.walk(path)):
        relative = os.path.relpath(folder, path)
        parts = [] if relative == "." else relative.split(os.sep)
        if number >= _MAX_FOLDERS or len(parts) > _MAX_DEPTH:
            raise InputError(
                f"{quoted(path)}: found over {_MAX_FOLDERS} folders or {_MAX_DEPTH} "
                "levels, expected a folder of <layer>/<weight>.npy files"
            )
        folders.sort()
        for file_name in sorted(files):
            if file_name.endswith(".npy"):
                name = "/".join([*parts, file_name.removesuffix(".npy")])
                check_name(name, where=quoted(path))
                file_path = os.path.join(folder, file_name)
                with open_file(file_path) as (file, size):
                    arrays[name] = _read_array(
                        file, max_bytes=size, name=quoted(file_path)
                    )
    return arrays


def save_layers(arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Writes weights by `<layer>/<weight>` to one file, or to a folder.

    Args:
      arrays: as `load_weights` gives them.
      path: `NAME.npz`, which is replaced in one step if it is there; anything else is
        a new or empty folder, which gets `<layer>/<weight>.npy`.

    Raises:
      InputError: the folder holds something, a name cannot be a path, or nothing can
        be written there.
      RunError: the disk is full.
    """
    path = os.fspath(path)
    if os.path.basename(path) == ".npz":
        raise InputError(f"{quoted(path)}: found a hidden file, expected NAME.npz")
    if path.endswith(".npz"):
        save_npz(arrays, path)
    else:
        save_folder(arrays, path)


def save_npz(arrays: Mapping[str, np.ndarray], path: str) -> None:
    """Writes a layer file, replacing one that is there, in one step.

    Raises:
      InputError: a name cannot be a key, or nothing can be written there.
      RunError: the disk is full.
    """
    for name in arrays:
        check_name(name, where=quoted(path))
    try:
        with publishing(path) as staging, open(staging, "wb") as file:
            # No key can be a parameter's name: each has a slash.
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except FILE_ERRORS as error:
        raise write_error(path, error) from error


def save_folder(arrays: Mapping[str, np.ndarray], path: str) -> None:
    """Writes a folder of `<layer>/<weight>.npy`; it must be new or empty.

    Raises:
      InputError: it holds something, a name cannot be a path, or nothing can be
        written there.
      RunError: the disk is full.
    """
    for name in arrays:
        check_name(name, where=quoted(path))
    path = path.rstrip("/") or "/"
    try:
        if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
            raise InputError(
                f"{quoted(path)}: found something there, expected a new or empty folder"
            )
        with publishing(path, overwrite=False) as staging:
            os.mkdir(staging)
            for name, array in arrays.items():
                file_path = os.path.join(staging, f"{name}.npy")
                os.makedirs(os.path.dirname(file_path), exist_ok=True)
                # Not into the file itself: NumPy's own writing does not say why a disk
                # took no more.
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                with open(file_path, "wb") as file:
                    file.write(content.getbuffer())
            if os.path.isdir(path):
                os.rmdir(path)  # which fails unless it is still empty
    except FILE_ERRORS as error:
        raise write_error(path, error) from error


def _is_plain(part: str) -> bool:
    return (
        part not in ("", ".", "..")
        and part.isprintable()
        and "\\" not in part
        and len(part.encode(errors="replace")) <= 250
    )


def _read_array(stream: IO[bytes], *, max_bytes: int, name: str) -> np.ndarray:
    header = read_npy_header(stream, name=name)
    if header.dtype.kind not in "biuf":
        raise InputError(f"{name}: found dtype {header.dtype}, expected numbers")
    return read_npy_data(stream, header, max_bytes=max_bytes, name=name)


def write_error(path: str, error: Exception) -> InputError | RunError:
    """Returns what to raise when a file of weights cannot be written."""
    message = f"{quoted(path)}: cannot be written ({describe_error(error)})"
    is_full = getattr(error, "errno", None) in _FULL
    return RunError(message) if is_full else InputError(message)
