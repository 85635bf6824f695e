"""Data sets in NumPy's files: one `.npz` of all arrays, or one file an array."""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, KeysView, Mapping

import numpy as np

from mnist_dist.data.split_checks import check_images_header, check_labels_header
from mnist_dist.data.stored import (
    Candidate,
    StoredDataset,
    StoredSplit,
    kind_of,
    listed,
    split_of,
)
from mnist_dist.errors import InputError
from mnist_dist.files.npy import read_npy_data, read_npy_header
from mnist_dist.files.untrusted import (
    MAX_IMAGES_RATIO,
    max_unpacked_bytes,
    open_file,
    quoted,
)

# Images and labels of train and test: as in Keras's mnist.npz, and as in MedMNIST.
_KERAS_KEYS = ("x_train", "y_train", "x_test", "y_test")
_MEDMNIST_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_MEDMNIST_VALIDATION_KEYS = ("val_images", "val_labels")
_PARTS = tuple((s, k) for s in ("train", "test") for k in ("images", "labels"))

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


def find_npz(directory: str, files: Mapping[str, str]) -> Candidate | None:
    """Finds one `.npz` file, or four files of one array each, among `files`.

    The four are `.npz` or `.npy` files that their names tell apart, as KMNIST's
    `kmnist-train-imgs.npz` or an own `x_train.npy`.

    Args:
      directory: for error messages.
      files: path by name.

    Raises:
      InputError: there are several data sets.
    """
    names = [name for name in files if name.endswith(".npz")]
    if len(names) == 1:
        path = files[names[0]]
        return Candidate(names, lambda: read_npz(path))
    by_part: dict[tuple[str | None, str | None], list[str]] = {}
    for name in files:
        if name.endswith((".npz", ".npy")):
            by_part.setdefault((split_of(name), kind_of(name)), []).append(name)
    parts = [by_part.get(part, []) for part in _PARTS]
    if all(len(part) == 1 for part in parts):
        chosen = [part[0] for part in parts]
        paths = [files[name] for name in chosen]
        return Candidate(chosen, lambda: _read_four(paths))
    if names:
        raise InputError(
            f"{quoted(directory)}: found {listed(names)}, expected one .npz file, "
            "which --data_dir may also name, or images and labels of train and test "
            "in four of one array each"
        )
    return None


def read_npz(path: str | os.PathLike[str]) -> StoredDataset:
    """Reads a data set from one `.npz` file.

    It has the arrays of Keras's mnist.npz (`x_train`, `y_train`, `x_test`, `y_test`)
    or of MedMNIST (`train_images`, `train_labels`, `val_images`, ...). Other arrays
    are not read. Pickled objects are never loaded.

    Raises:
      InputError: the file cannot be read, is damaged, lacks an array, or holds one
        of another type or shape.
    """
    with _open_npz(path) as archive:
        keys = max(
            _KERAS_KEYS,
            _MEDMNIST_KEYS,
            key=lambda known: len(archive.keys() & set(known)),
        )
        missing = [key for key in keys if key not in archive.keys()]  # noqa: SIM118
        if missing:
            raise InputError(
                f"{quoted(path)}: missing {', '.join(missing)}; found "
                f"{listed(list(archive.keys()))}"
            )
        validation = None
        if keys == _MEDMNIST_KEYS and archive.keys() >= set(_MEDMNIST_VALIDATION_KEYS):
            validation = archive.read_split(*_MEDMNIST_VALIDATION_KEYS)
        return StoredDataset(
            train=archive.read_split(*keys[:2]),
            test=archive.read_split(*keys[2:]),
            validation=validation,
        )


def _read_four(paths: list[str]) -> StoredDataset:
    arrays = [
        _read_only_array(path, is_images=kind == "images")
        for path, (_, kind) in zip(paths, _PARTS, strict=True)
    ]
    names = [quoted(path) for path in paths]
    return StoredDataset(
        train=StoredSplit(arrays[0], arrays[1], names[0], names[1]),
        test=StoredSplit(arrays[2], arrays[3], names[2], names[3]),
    )


def _read_only_array(path: str, *, is_images: bool) -> np.ndarray:
    """Reads the one array of a `.npy` file, or of an `.npz` file that has only one."""
    if path.endswith(".npy"):
        with open_file(path) as (file, size):
            return _read_array(
                file, max_bytes=size, is_images=is_images, name=quoted(path)
            )
    with _open_npz(path) as archive:
        if len(archive.keys()) != 1:
            raise InputError(
                f"{quoted(path)}: found {listed(list(archive.keys()))}, expected one "
                "array, as in the other files of this data set"
            )
        (key,) = archive.keys()
        return archive.read(key, is_images=is_images)


@contextlib.contextmanager
def _open_npz(path: str | os.PathLike[str]) -> Iterator[_Archive]:
    with open_file(path) as (file, size):
        try:
            with zipfile.ZipFile(file) as archive:
                yield _Archive(archive, size=size, path=path)
        except _ZIP_ERRORS as error:
            raise InputError(
                f"{quoted(path)}: not a zip archive that can be read ({error})"
            ) from error


class _Archive:
    """The arrays in an open `.npz` file.

    `numpy.load` would do, were it not that it allocates what a header claims: here a
    claim that the file cannot hold is refused, and the rest is read as far as the
    data goes.
    """

    def __init__(
        self, archive: zipfile.ZipFile, *, size: int, path: str | os.PathLike[str]
    ) -> None:
        self._archive = archive
        self._name = quoted(path)
        self._members = {
            info.filename[: -len(".npy")]: info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        self._max_bytes = {
            zipfile.ZIP_STORED: size,
            zipfile.ZIP_DEFLATED: max_unpacked_bytes(size, max_ratio=MAX_IMAGES_RATIO),
        }

    def keys(self) -> KeysView[str]:
        return self._members.keys()

    def read_split(self, images: str, labels: str) -> StoredSplit:
        return StoredSplit(
            self.read(images, is_images=True),
            self.read(labels, is_images=False),
            f"{self._name}: {images}",
            f"{self._name}: {labels}",
        )

    def read(self, key: str, *, is_images: bool) -> np.ndarray:
        name, member = f"{self._name}: {key}", self._members[key]
        if member.compress_type not in self._max_bytes:
            raise InputError(
                f"{name}: found zip compression method {member.compress_type}, "
                "expected stored or deflated"
            )
        max_bytes = self._max_bytes[member.compress_type]
        if member.file_size > max_bytes:
            raise InputError(
                f"{name}: the zip directory claims {member.file_size} bytes, but a "
                f"file of this size holds at most {max_bytes}"
            )
        with self._archive.open(member) as stream:
            return _read_array(
                stream, max_bytes=max_bytes, is_images=is_images, name=name
            )


def _read_array(stream, *, max_bytes: int, is_images: bool, name: str) -> np.ndarray:
    header = read_npy_header(stream, name=name)
    check = check_images_header if is_images else check_labels_header
    check(header.shape, header.dtype, name=name)
    return read_npy_data(stream, header, max_bytes=max_bytes, name=name)
