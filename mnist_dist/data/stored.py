"""What a data set's files hold, before it is checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import quoted

# Words in the names of files, folders and arrays.
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "t10k": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_KIND_WORDS = {
    "images": "images",
    "imgs": "images",
    "x": "images",
    "labels": "labels",
    "y": "labels",
}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSplit:
    """Images and labels as they are stored.

    Attributes:
      images: an array; its type and shape are not checked yet.
      labels: an array; likewise.
      images_name: names the file, and the part of it, in error messages.
      labels_name: likewise.
    """

    images: np.ndarray
    labels: np.ndarray
    images_name: str
    labels_name: str


@dataclasses.dataclass(frozen=True, eq=False)
class StoredDataset:
    """The splits of a data set as they are stored.

    Attributes:
      train: its training examples.
      test: its test examples; None if it has none with labels.
      validation: the validation split that it is published with, or None.
      class_names: the name of each label, or None where labels are only numbers.
      notes: what was done to read it, or left out, for a person to read.
    """

    train: StoredSplit
    test: StoredSplit | None
    validation: StoredSplit | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A data set that was found in a directory and is not read yet.

    Attributes:
      names: of its files or folders, for error messages.
      read: reads it; raises `InputError`.
    """

    names: list[str]
    read: Callable[[], StoredDataset]


def split_of(name: str) -> str | None:
    """Returns the split that a name names: `train`, `validation` or `test`.

    None if it names none, or two.
    """
    return _meaning(name, _SPLIT_WORDS)


def kind_of(name: str) -> str | None:
    """Returns what a name says an array holds: `images` or `labels`, or None."""
    return _meaning(name, _KIND_WORDS)


def _meaning(name: str, words: dict[str, str]) -> str | None:
    parts = re.split(r"[^a-z0-9]+", name.lower())
    found = {words[part] for part in parts if part in words}
    return found.pop() if len(found) == 1 else None


def listed(names: list[str]) -> str:
    """Returns the first names of a list, quoted, for an error message."""
    shown = ", ".join(repr(name) for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (shown or "nothing") + more


def choose_by_split(
    directory: str, names: list[str], *, what: str
) -> dict[str, str] | None:
    """Returns the name for each split, or None if there is none for training.

    A single name that names no split is the one for training.

    Args:
      directory: for error messages.
      names: of files of one kind.
      what: that kind, for error messages.

    Raises:
      InputError: there are several for one split.
    """
    if len(names) == 1 and split_of(names[0]) is None:
        return {"train": names[0]}
    by_split: dict[str, list[str]] = {}
    for name in names:
        if (split := split_of(name)) is not None:
            by_split.setdefault(split, []).append(name)
    if "train" not in by_split:
        return None
    for split, candidates in by_split.items():
        if len(candidates) > 1:
            raise InputError(
                f"{quoted(directory)}: expected one {what} of {split} images, found "
                f"{listed(candidates)}"
            )
    return {split: candidates[0] for split, candidates in by_split.items()}
