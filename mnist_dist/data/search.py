"""Find the data set in a directory, in whichever form it is published."""

from __future__ import annotations

import os
from typing import NamedTuple

from mnist_dist.data.class_folders import find_class_folders
from mnist_dist.data.csv_files import find_csv
from mnist_dist.data.idx_files import find_idx, normal_name
from mnist_dist.data.npz_files import find_npz
from mnist_dist.data.parquet_files import find_parquet
from mnist_dist.data.stored import Candidate, StoredDataset, listed
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import quoted

# How far a data set is looked for in the folders of a directory, and how many there
# may be: an archive unpacks into a few folders, a home directory has many.
_MAX_DEPTH = 3
_MAX_FOLDERS = 32

_SINGLE_FILES = {".npz": find_npz, ".csv": find_csv, ".parquet": find_parquet}

_EXPECTED = (
    "expected IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, and the "
    "same with t10k- or test-, plain or .gz), one .npz file, train.csv and test.csv, "
    "train-*.parquet and test-*.parquet, or folders train/<class>/ and test/<class>/ "
    "of pictures"
)


class _Contents(NamedTuple):
    """The names in a directory: path by name of file, and folders in order."""

    files: dict[str, str]
    folders: list[str]


def read_published(path: str) -> tuple[str, StoredDataset]:
    """Reads the data set in a directory, or in one file.

    Args:
      path: a directory, or an `.npz`, `.csv` or `.parquet` file.

    Returns:
      Where it was found, and what is there.

    Raises:
      InputError: there is no data set, several, or one that cannot be read.
    """
    find = _SINGLE_FILES.get(os.path.splitext(path)[1])
    if find is not None and not os.path.isdir(path):
        found = find(os.path.dirname(path), {os.path.basename(path): path})
        if found is None:
            raise InputError(
                f"{quoted(path)}: expected the directory of this file, which is of one "
                "split alone"
            )
        return path, found.read()
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(
            f"{quoted(path)}: found a file, expected a directory, or a file whose name "
            f"ends in {' or '.join(_SINGLE_FILES)}"
        )
    in_directory = _search(path, depth=0)
    if in_directory is None:
        files, folders = _list(path)
        raise InputError(
            f"{quoted(path)}: no data set: {_EXPECTED}; found "
            f"{listed(sorted([*files, *folders]))}"
        )
    source, found = in_directory
    return source, found.read()


def _search(directory: str, *, depth: int) -> tuple[str, Candidate] | None:
    """Returns where the data set is, in `directory` or its folders, and the set."""
    files, folders = _list(directory)
    with_inner = files | _inner_files(directory, files, folders)
    # These two have always been read whatever else lies beside them.
    found = [
        c for c in (find_npz(directory, files), find_idx(directory, with_inner)) if c
    ]
    if not found:
        others = (
            find_csv(directory, with_inner),
            find_parquet(directory, files),
            find_class_folders(directory, folders),
        )
        found = [candidate for candidate in others if candidate]
    if len(found) > 1:
        names = [name for candidate in found for name in candidate.names]
        raise InputError(
            f"{quoted(directory)}: found {listed(names)}, expected one data set alone"
        )
    if found:
        return directory, found[0]
    if depth == _MAX_DEPTH or len(folders) > _MAX_FOLDERS:
        return None
    paths = [os.path.join(directory, name) for name in folders]
    within = [r for path in paths if (r := _search(path, depth=depth + 1))]
    if len(within) > 1:
        raise InputError(
            f"{quoted(directory)}: found several data sets, in "
            f"{listed([where for where, _ in within])}; expected one of these folders"
        )
    return within[0] if within else None


def _list(directory: str) -> _Contents:
    try:
        with os.scandir(directory) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries}
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{quoted(directory)}: cannot list the data directory ({reason})"
        ) from error
    names = sorted(is_folder)
    return _Contents(
        files={n: os.path.join(directory, n) for n in names if not is_folder[n]},
        folders=[n for n in names if is_folder[n] and n[0] not in "._"],
    )


def _inner_files(
    directory: str, files: dict[str, str], folders: list[str]
) -> dict[str, str]:
    """Returns files in folders of their own name, as Kaggle unpacks them.

    What is in `directory` itself, under any spelling of the name, is left out.
    """
    present = {normal_name(name) for name in files}
    inner = {}
    for folder in folders:
        for name in (folder, f"{folder}.gz", f"{folder}.csv"):
            path = os.path.join(directory, folder, name)
            if normal_name(name) not in present and os.path.isfile(path):
                inner[name] = path
                break
    return inner
