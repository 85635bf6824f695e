"""Data sets in IDX files: MNIST and its relatives, each under its own names."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping

from mnist_dist.data import emnist
from mnist_dist.data.stored import Candidate, StoredDataset, StoredSplit, listed
from mnist_dist.errors import InputError
from mnist_dist.files.idx import load_idx
from mnist_dist.files.untrusted import quoted

# train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz, qmnist-train-labels-idx2-int,
# emnist-letters-test-images-idx3-ubyte.gz, ...
IDX_NAME = re.compile(
    r"(?P<prefix>(?:.+-)?)(?P<split>train|t10k|test)-(?P<kind>images|labels)"
    r"[-.]idx\d-(?:ubyte|int)(?:\.gz)?"
)
_PARTS = ("train images", "train labels", "test images", "test labels")
# What QMNIST says of each image: the label, and where it comes from in NIST.
_QMNIST_COLUMNS = 8


def find_idx(directory: str, files: Mapping[str, str]) -> Candidate | None:
    """Finds the four IDX files of a data set.

    Args:
      directory: for error messages.
      files: path by name.

    Raises:
      InputError: there are IDX files, but not the four of one data set.
    """
    found: dict[str, dict[str, list[str]]] = {}  # prefix -> part -> names
    for name in files:
        match = IDX_NAME.fullmatch(name)
        is_second_copy = name.endswith(".gz") and name[: -len(".gz")] in files
        if match is None or is_second_copy:
            continue
        split = "train" if match["split"] == "train" else "test"
        parts = found.setdefault(match["prefix"], {})
        parts.setdefault(f"{split} {match['kind']}", []).append(name)
    if not found:
        return None
    if len(found) > 1:
        raise InputError(
            f"{quoted(directory)}: found several data sets, with the prefixes "
            f"{listed(sorted(found))}; expected one: put its four files, or links "
            "to them, in a directory of their own"
        )
    ((prefix, parts),) = found.items()
    chosen = []
    for part in _PARTS:
        candidates = parts.get(part, [])
        if len(candidates) != 1:
            raise InputError(
                f"{quoted(directory)}: expected one IDX file of {part}, found "
                f"{listed(candidates or sorted(itertools.chain(*parts.values())))}"
            )
        chosen += candidates
    paths = [files[name] for name in chosen]
    mapping = files.get(f"{prefix}mapping.txt")
    return Candidate(chosen, lambda: _read(prefix, paths, mapping))


def _read(prefix: str, paths: list[str], mapping: str | None) -> StoredDataset:
    dataset = StoredDataset(
        train=_read_split(prefix, *paths[:2]), test=_read_split(prefix, *paths[2:])
    )
    if emnist.is_emnist(prefix):
        return emnist.turn_upright(dataset, mapping)
    return dataset


def _read_split(prefix: str, images_path: str, labels_path: str) -> StoredSplit:
    labels = load_idx(labels_path, is_labels=True)
    is_qmnist = prefix.lower().startswith("qmnist")
    if is_qmnist and labels.shape[1:] == (_QMNIST_COLUMNS,):
        labels = labels[:, 0]
    return StoredSplit(
        load_idx(images_path), labels, quoted(images_path), quoted(labels_path)
    )


def normal_name(name: str) -> str:
    """Returns one name for all spellings of an IDX file's name."""
    return os.path.basename(name).replace(".idx", "-idx").removesuffix(".gz")
