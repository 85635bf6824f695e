"""Find a data set in a directory, check it and load it whole into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from pathlib import Path

import numpy as np

from mnist_dist.data.idx import load_idx
from mnist_dist.data.npz import KEYS, load_npz
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import quoted

MAX_CLASSES = 1 << 16

_BUNDLED = Path(__file__).parent / "bundled"

# train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz,
# emnist-letters-test-images-idx3-ubyte.gz, ...
_IDX_NAME = re.compile(
    r"(?P<prefix>(?:.+-)?)(?P<split>train|t10k|test)-(?P<kind>images|labels)"
    r"[-.]idx\d-ubyte(?:\.gz)?"
)
# In the order of npz.KEYS.
_PARTS = ("train images", "train labels", "test images", "test labels")


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples in file order.

    Attributes:
      name: "train", "validation" or "test".
      images: uint8 [n, height, width, channels], 0 to 255, 1 or 3 channels.
      labels: int32 [n], 0 to num_classes - 1.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
      source: where it came from, for a person to read.
      train: the examples to train on, without those of `validation`.
      validation: the last training examples of the file, or None.
      test: the test examples.
      num_classes: largest label of train and test + 1, at least 2.
      checksum: SHA-256 (hex) of all images, labels and shapes before validation
        examples were set apart. The same data give the same checksum whether they
        came as plain IDX, gzip-compressed IDX or npz.
    """

    source: str
    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    checksum: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels

    @property
    def evaluation(self) -> Split:
        """What to evaluate on while training: validation if there is one, or test."""
        return self.test if self.validation is None else self.validation

    @property
    def num_bytes(self) -> int:
        """Bytes of the images that training and evaluation use."""
        return self.train.images.nbytes + self.evaluation.images.nbytes


def load_dataset(
    data_dir: str | os.PathLike[str] | None = None, *, validation_examples: int = 0
) -> Dataset:
    """Loads the bundled MNIST, or the data set in a directory.

    A directory holds either one `.npz` file with the arrays of `mnist.npz`, or four
    IDX files under their usual names: `train-images-idx3-ubyte`,
    `train-labels-idx1-ubyte`, and the same with `t10k-` or `test-`; plain or `.gz`,
    all four with the same prefix (`emnist-letters-`) or none. Where a file is there
    both plain and as `.gz`, the plain one is read. Other files are ignored.

    Args:
      data_dir: the directory; None is the bundled MNIST.
      validation_examples: how many of the last training examples of the file to
        set apart for validation; at least one example is left to train on.

    Raises:
      InputError: the data set is missing, ambiguous, damaged or inconsistent, or
        `validation_examples` is out of range.
    """
    directory = os.fspath(_BUNDLED if data_dir is None else data_dir)
    train, test = _load_splits(directory)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{quoted(directory)}: training images have the shape "
            f"{train.images.shape[1:]}, test images {test.images.shape[1:]}; expected "
            "one shape (height, width, channels)"
        )
    checksum = _checksum(train, test)
    largest_label = max(int(train.labels.max()), int(test.labels.max()))
    num_train = len(train.labels)
    if not 0 <= validation_examples < num_train:
        raise InputError(
            f"--validation_examples: found {validation_examples}, expected 0 to "
            f"{num_train - 1}: {quoted(directory)} has {num_train} training examples"
        )
    validation = None
    if validation_examples:
        cut = num_train - validation_examples
        validation = Split("validation", train.images[cut:], train.labels[cut:])
        train = Split("train", train.images[:cut], train.labels[:cut])
    return Dataset(
        source="bundled MNIST" if data_dir is None else directory,
        train=train,
        validation=validation,
        test=test,
        num_classes=max(2, largest_label + 1),
        checksum=checksum,
    )


def _load_splits(directory: str) -> tuple[Split, Split]:
    try:
        names = sorted(os.listdir(directory))
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{quoted(directory)}: cannot list the data directory ({reason})"
        ) from error
    archives = [name for name in names if name.endswith(".npz")]
    idx_files = _find_idx_files(names, directory)
    if len(archives) > 1 or (archives and idx_files):
        raise InputError(
            f"{quoted(directory)}: found {_listed(archives + idx_files)}, expected "
            "either one .npz file or IDX files"
        )
    if archives:
        path = os.path.join(directory, archives[0])
        arrays = load_npz(path)
        parts = [(f"{quoted(path)}: {key}", arrays[key]) for key in KEYS]
    elif idx_files:
        paths = [os.path.join(directory, name) for name in idx_files]
        parts = [(quoted(path), load_idx(path)) for path in paths]
    else:
        raise InputError(
            f"{quoted(directory)}: no data set: expected IDX files "
            "(train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same with "
            f"t10k- or test-, plain or .gz) or one .npz file; found {_listed(names)}"
        )
    return (
        _create_split("train", *parts[0], *parts[1]),
        _create_split("test", *parts[2], *parts[3]),
    )


def _find_idx_files(names: list[str], directory: str) -> list[str]:
    """Returns the four names in the order of `_PARTS`; none if there is no IDX."""
    found: dict[str, dict[str, list[str]]] = {}  # prefix -> part -> names
    present = set(names)
    for name in names:
        match = _IDX_NAME.fullmatch(name)
        is_second_copy = name.endswith(".gz") and name[: -len(".gz")] in present
        if match is None or is_second_copy:
            continue
        split = "train" if match["split"] == "train" else "test"
        parts = found.setdefault(match["prefix"], {})
        parts.setdefault(f"{split} {match['kind']}", []).append(name)
    if not found:
        return []
    if len(found) > 1:
        raise InputError(
            f"{quoted(directory)}: found several data sets, with the prefixes "
            f"{_listed(sorted(found))}; expected one: put its four files, or links "
            "to them, in a directory of their own"
        )
    (parts,) = found.values()
    chosen = []
    for part in _PARTS:
        candidates = parts.get(part, [])
        if len(candidates) != 1:
            raise InputError(
                f"{quoted(directory)}: expected one IDX file of {part}, found "
                f"{_listed(candidates or sorted(itertools.chain(*parts.values())))}"
            )
        chosen += candidates
    return chosen


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (shown or "nothing") + more


def _create_split(
    name: str,
    images_name: str,
    images: np.ndarray,
    labels_name: str,
    labels: np.ndarray,
) -> Split:
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(
            f"{images_name}: found shape {images.shape}, expected images of shape "
            "(n, height, width) or (n, height, width, 1 or 3 channels)"
        )
    if labels.ndim != 1:
        raise InputError(
            f"{labels_name}: found shape {labels.shape}, expected labels of shape (n,)"
        )
    if len(images) != len(labels):
        raise InputError(
            f"{labels_name}: found {len(labels)} labels, expected one for each of the "
            f"{len(images)} images in {images_name}"
        )
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0 or largest >= MAX_CLASSES:
        raise InputError(
            f"{labels_name}: found labels from {smallest} to {largest}, expected 0 to "
            f"{MAX_CLASSES - 1}"
        )
    return Split(name, images, labels.astype(np.int32))


def _checksum(train: Split, test: Split) -> str:
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update(f"{split.name} {split.images.shape}".encode())
        digest.update(split.images.data)
        digest.update(split.labels.astype("<i4").data)
    return digest.hexdigest()
