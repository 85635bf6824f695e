"""Data sets as folders of pictures, one folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from mnist_dist.data.encoded_images import decode_images, with_equal_channels
from mnist_dist.data.stored import (
    Candidate,
    StoredDataset,
    StoredSplit,
    listed,
    split_of,
)
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import open_file, quoted
from mnist_dist.pictures.decoding import MAX_ENCODED_BYTES

# fmt: off
_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"
)
# fmt: on


def find_class_folders(directory: str, folders: list[str]) -> Candidate | None:
    """Finds `train/<class>/*.png` and `test/<class>/*.png`, or `<class>/*.png`.

    A folder of a split has its word in its name (`train`, `training`, `test`,
    `testing`, `val`, ...) and may hold one more of the same name around the classes.

    Args:
      directory: where they lie.
      folders: the names of the folders in it.

    Raises:
      InputError: there are several folders for one split.
    """
    splits: dict[str, list[str]] = {}
    for name in folders:
        split, root = split_of(name), os.path.join(directory, name)
        inner = os.path.join(root, name)
        root = inner if os.path.isdir(inner) else root
        if split is not None and _is_split(root):
            splits.setdefault(split, []).append(root)
    for split, roots in splits.items():
        if len(roots) > 1:
            raise InputError(
                f"{quoted(directory)}: found {listed(roots)}, expected one folder of "
                f"{split} pictures"
            )
    chosen = {split: roots[0] for split, roots in splits.items()}
    if "train" in chosen:
        return Candidate(list(chosen.values()), lambda: _read(chosen))
    if not splits and sum(map(_has_pictures, _join(directory, folders))) > 1:
        return Candidate(folders, lambda: _read({"train": directory}))
    return None


def _is_split(root: str) -> bool:
    return any(_has_pictures(path) for path in _join(root, _class_names(root)))


def _has_pictures(folder: str) -> bool:
    return next(_pictures(folder), None) is not None


def _join(directory: str, names: list[str]) -> list[str]:
    return [os.path.join(directory, name) for name in names]


def _pictures(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_hidden = entry.name.startswith(".")
                is_picture = entry.name.lower().endswith(_SUFFIXES)
                if is_picture and not is_hidden and not entry.is_dir():
                    yield entry.path
    except OSError as error:
        raise InputError(f"{quoted(folder)}: {error.strerror}") from error


def _class_names(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [e.name for e in entries if e.is_dir() and e.name[0] not in "._"]
    except OSError as error:
        raise InputError(f"{quoted(root)}: {error.strerror}") from error


def _read(roots: dict[str, str]) -> StoredDataset:
    names = sorted({name for root in roots.values() for name in _class_names(root)})
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)
    splits = with_equal_channels(
        {split: _read_split(root, names) for split, root in roots.items()}
    )
    return StoredDataset(
        train=splits["train"],
        test=splits.get("test"),
        validation=splits.get("validation"),
        class_names=tuple(names),
    )


def _read_split(root: str, names: list[str]) -> StoredSplit:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        folder = os.path.join(root, name)
        if not os.path.isdir(folder):
            continue
        if inner := _class_names(folder):
            raise InputError(
                f"{quoted(folder)}: found the folders {listed(inner)}, expected "
                "pictures of one class alone"
            )
        found = sorted(_pictures(folder))
        paths += found
        labels += [label] * len(found)
    try:
        num_bytes = sum(map(os.path.getsize, paths))
    except OSError as error:  # as of a link to nothing
        raise InputError(f"{quoted(error.filename)}: {error.strerror}") from error
    images = decode_images(
        ((quoted(path), _read_file(path)) for path in paths),
        count=len(paths),
        num_bytes=num_bytes,
        name=quoted(root),
    )
    return StoredSplit(images, np.array(labels), quoted(root), quoted(root))


def _read_file(path: str) -> bytes:
    with open_file(path) as (file, size):
        return file.read(min(size, MAX_ENCODED_BYTES + 1))
