"""Data sets in CSV files, one a split."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from mnist_dist.data import emnist
from mnist_dist.data.csv_table import LABEL_COLUMNS, CsvTable, read_csv_table
from mnist_dist.data.stored import (
    Candidate,
    StoredDataset,
    StoredSplit,
    choose_by_split,
    listed,
)
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import quoted

_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.0*)?")


def find_csv(directory: str, files: Mapping[str, str]) -> Candidate | None:
    """Finds `train.csv` and `test.csv`, with any prefix, or the only CSV file.

    Args:
      directory: for error messages.
      files: path by name.

    Raises:
      InputError: there are several files for one split.
    """
    names = [name for name in files if name.lower().endswith(".csv")]
    chosen = choose_by_split(directory, names, what="CSV file")
    if chosen is None:
        return None
    mapping = None
    if emnist.is_emnist(chosen["train"]):
        prefix = chosen["train"].lower().partition("train")[0]
        mapping = files.get(f"{prefix}mapping.txt")
    paths = {split: files[name] for split, name in chosen.items()}
    return Candidate(list(chosen.values()), lambda: read_csv(paths, mapping=mapping))


def read_csv(paths: Mapping[str, str], *, mapping: str | None = None) -> StoredDataset:
    """Reads the CSV files of a data set.

    The first line may name the columns: the label's is `label`, `labels`, `class` or
    `target`; `id` and `index` are not read; all others are pixels, row by row of a
    square grey image. Without names the label comes first. A file without labels,
    but for that of training, is not used, and a note of the data set says so.

    Args:
      paths: by split; `train` must be there.
      mapping: path of EMNIST's list of classes, or None.

    Raises:
      InputError: a file cannot be read or is no such table.
    """
    train = read_csv_table(paths["train"])
    if train.labels is None:
        raise InputError(
            f"{quoted(paths['train'])}: found no column of labels, expected one named "
            f"{', '.join(sorted(LABEL_COLUMNS))}"
        )
    tables, notes = {"train": train}, []
    for split in sorted(paths.keys() - {"train"}):
        table = read_csv_table(paths[split], num_pixels=train.pixels.shape[1])
        if table.labels is None:
            notes.append(f"{quoted(paths[split])} has no labels and is not used")
        else:
            tables[split] = table
    numbers, class_names = _encode(tables, name=quoted(paths["train"]))
    splits = {
        split: StoredSplit(
            table.pixels, numbers[split], quoted(paths[split]), quoted(paths[split])
        )
        for split, table in tables.items()
    }
    dataset = StoredDataset(
        train=splits["train"],
        test=splits.get("test"),
        validation=splits.get("validation"),
        class_names=class_names,
        notes=tuple(notes),
    )
    if emnist.is_emnist(os.path.basename(paths["train"])):
        return emnist.turn_upright(dataset, mapping)
    return dataset


def _encode(
    tables: Mapping[str, CsvTable], *, name: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Returns the labels of each split as numbers, and the classes' names if any."""
    texts = sorted({text for table in tables.values() for text in table.labels or ()})
    are_numbers = [_WHOLE_NUMBER.fullmatch(text) is not None for text in texts]
    if any(are_numbers) and not all(are_numbers):
        raise InputError(
            f"{name}: found the labels {listed(texts)}, expected all of them to be "
            "whole numbers, or all to be names"
        )
    if all(are_numbers):
        codes = {text: int(text.partition(".")[0]) for text in texts}
    else:
        codes = {text: code for code, text in enumerate(texts)}
    numbers = {
        split: np.array([codes[text] for text in table.labels or ()])
        for split, table in tables.items()
    }
    return numbers, None if all(are_numbers) else tuple(texts)
