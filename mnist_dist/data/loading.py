"""Load a data set whole into memory: find it, read it, check it, divide it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnist_dist.data.dataset import Dataset, Split, checksum_of
from mnist_dist.data.drawing import draw_stratified
from mnist_dist.data.search import read_published
from mnist_dist.data.split_checks import check_split, warn_of_suspect_data
from mnist_dist.data.stored import StoredDataset, StoredSplit
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import quoted

VALIDATION_SPLITS = ("stratified", "last")

_BUNDLED = Path(__file__).parent / "bundled"
# Of the examples, where none are published as the test set.
_TEST_SHARE = 10


def load_dataset(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    validation_examples: int = 0,
    validation_split: str = "stratified",
    validation_seed: int = 0,
) -> Dataset:
    """Loads the bundled MNIST, or the data set in a directory.

    The forms in which data sets are published are read as they are:

    - IDX: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and the same with
      `t10k-` or `test-`; plain or `.gz`, all four with the same prefix or none. Where
      a file is there both plain and as `.gz`, the plain one is read. QMNIST's labels
      are column 0 of its `idx2-int` files. EMNIST's images (prefix `emnist-`) are
      turned upright, and its `mapping.txt` names the classes.
    - One `.npz` file: the arrays of Keras's `mnist.npz` or of MedMNIST, whose `val_*`
      become the validation split. Or four `.npz` or `.npy` files of one array each,
      as KMNIST's.
    - CSV: `train.csv` and `test.csv`, with any prefix (`csv_files.read_csv`).
    - Parquet: `train-*.parquet` and `test-*.parquet`, where `pyarrow` is installed.
    - Folders of pictures, all of one size: `train/<class>/*.png` and
      `test/<class>/*.png`, or `<class>/*.png`. The folders name the classes; in the
      order of the names, or of the numbers if all are numbers.

    Images are uint8 of one shape; labels are integers of any type, [n] or [n, 1].
    The files may lie in a folder of their own name, or in folders below `data_dir`
    if there is no other data set in these. Other files are ignored. A set without
    labelled test examples gives a tenth of its training examples for it, drawn as
    validation examples are, with a seed of its own.

    Args:
      data_dir: the directory, or an `.npz`, `.csv` or `.parquet` file; None is the
        bundled MNIST.
      validation_examples: how many training examples to set apart for validation;
        at least one is left to train on.
      validation_split: which: `stratified` draws them, each class in its share;
        `last` takes the last of the file, as runs did that do not say.
      validation_seed: of the draw, which is the same for the same seed and data.

    Raises:
      InputError: the data set is missing, ambiguous, damaged or inconsistent, or
        `validation_examples` is out of range.
    """
    if validation_split not in VALIDATION_SPLITS:
        raise ValueError(
            f"validation_split is {validation_split!r}, expected one of "
            f"{VALIDATION_SPLITS}"
        )
    path = os.fspath(_BUNDLED if data_dir is None else data_dir)
    source, stored = read_published(path)
    return _create_dataset(
        stored,
        source="bundled MNIST" if data_dir is None else source,
        validation_examples=validation_examples,
        validation_split=validation_split,
        validation_seed=validation_seed,
    )


def dataset_from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    class_names: Sequence[str] | None = None,
    validation_examples: int = 0,
    validation_seed: int = 0,
) -> Dataset:
    """Makes a data set of arrays, checked as those in files are.

    Args:
      train: images, uint8 [n, height, width], [n, height, width, 1 or 3] or [n,
        pixels of a square], and labels, integers [n] or [n, 1].
      test: likewise.
      class_names: the name of each label from 0 on, if it has one.
      validation_examples: how many training examples to draw for validation, each
        class in its share.
      validation_seed: of the draw.

    Raises:
      InputError: an array is not such a one, or `validation_examples` is out of range.
    """
    splits = []
    for name, (images, labels) in (("train", train), ("test", test)):
        splits.append(
            StoredSplit(
                np.asarray(images),
                np.asarray(labels),
                f"{name} images",
                f"{name} labels",
            )
        )
    return _create_dataset(
        StoredDataset(
            train=splits[0],
            test=splits[1],
            class_names=None if class_names is None else tuple(class_names),
        ),
        source="arrays",
        validation_examples=validation_examples,
        validation_split="stratified",
        validation_seed=validation_seed,
    )


def _create_dataset(
    stored: StoredDataset,
    *,
    source: str,
    validation_examples: int,
    validation_split: str,
    validation_seed: int,
) -> Dataset:
    notes = list(stored.notes)
    train = check_split("train", stored.train)
    if stored.test is not None:
        test = check_split("test", stored.test)
    else:
        num_examples = len(train.labels)
        count = max(1, num_examples // _TEST_SHARE)
        train, test = _set_apart(
            train, draw_stratified(train.labels, count=count, seed=0), name="test"
        )
        notes.append(f"{count:,} of {num_examples:,} examples drawn as the test set")
    splits = [train, test]
    validation = None
    if stored.validation is not None:
        validation = check_split("validation", stored.validation)
        splits.append(validation)
    for split in splits[1:]:
        if split.images.shape[1:] != train.images.shape[1:]:
            raise InputError(
                f"{quoted(source)}: training images have the shape "
                f"{train.images.shape[1:]}, {split.name} images "
                f"{split.images.shape[1:]}; expected one shape (height, width, channels)"
            )
    num_classes, class_names = _count_classes(splits, stored.class_names, source=source)
    checksum = checksum_of(splits)
    if validation_examples:
        _check_validation_examples(
            validation_examples, train, validation, source=source
        )
        if validation_split == "last":
            chosen = np.arange(len(train.labels))[-validation_examples:]
        else:
            chosen = draw_stratified(
                train.labels, count=validation_examples, seed=validation_seed
            )
        train, validation = _set_apart(train, chosen, name="validation")
    dataset = Dataset(
        source=source,
        train=train,
        validation=validation,
        test=test,
        num_classes=num_classes,
        checksum=checksum,
        class_names=class_names,
        notes=tuple(notes),
    )
    warn_of_suspect_data(dataset)
    return dataset


def _set_apart(train: Split, chosen: np.ndarray, *, name: str) -> tuple[Split, Split]:
    """Returns the training split without the chosen examples, and these as a split."""
    is_kept = np.ones(len(train.labels), dtype=bool)
    is_kept[chosen] = False
    if not is_kept.any():
        raise InputError(
            f"{name} examples: found {len(chosen)}, expected fewer than the "
            f"{len(train.labels)} training examples"
        )
    return train.take(is_kept), train.take(chosen, name=name)


def _check_validation_examples(
    count: int, train: Split, validation: Split | None, *, source: str
) -> None:
    num_train = len(train.labels)
    if validation is not None:
        raise InputError(
            f"--validation_examples: found {count}, expected 0: {quoted(source)} has "
            f"{len(validation.labels)} validation examples of its own"
        )
    if not 0 <= count < num_train:
        raise InputError(
            f"--validation_examples: found {count}, expected 0 to {num_train - 1}: "
            f"{quoted(source)} has {num_train} training examples"
        )


def _count_classes(
    splits: list[Split], class_names: tuple[str, ...] | None, *, source: str
) -> tuple[int, tuple[str, ...] | None]:
    """Returns the number of classes, and as many names if there are any."""
    largest_label = max(int(split.labels.max()) for split in splits)
    if class_names is None:
        return max(2, largest_label + 1), None
    if largest_label >= len(class_names):
        raise InputError(
            f"{quoted(source)}: found label {largest_label}, expected at most "
            f"{len(class_names) - 1}: there are {len(class_names)} class names"
        )
    num_classes = max(2, len(class_names))
    return num_classes, (*class_names, *map(str, range(len(class_names), num_classes)))
