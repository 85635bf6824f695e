"""EMNIST stores its images transposed: bring them upright, and name its classes.

G. Cohen, S. Afshar, J. Tapson and A. van Schaik, "EMNIST: an extension of MNIST to
handwritten letters", 2017.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mnist_dist.data.split_checks import check_images_header
from mnist_dist.data.stored import StoredDataset, StoredSplit
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import open_file, quoted

_NOTE = "images turned upright: EMNIST's files hold them transposed"
_MAX_MAPPING_BYTES = 1 << 16


def is_emnist(name: str) -> bool:
    """Whether a file of this name, or with this prefix, is one of EMNIST's."""
    return name.lower().startswith("emnist-")


def turn_upright(dataset: StoredDataset, mapping: str | None) -> StoredDataset:
    """Transposes each image back.

    Args:
      dataset: as EMNIST's files hold it.
      mapping: path of its `emnist-*-mapping.txt`, which names the classes, or None.

    Raises:
      InputError: the arrays are no images, or the mapping cannot be read.
    """
    return dataclasses.replace(
        dataset,
        train=_turn(dataset.train),
        test=None if dataset.test is None else _turn(dataset.test),
        class_names=None if mapping is None else _read_mapping(mapping),
        notes=(*dataset.notes, _NOTE),
    )


def _turn(split: StoredSplit) -> StoredSplit:
    shape = check_images_header(
        split.images.shape, split.images.dtype, name=split.images_name
    )
    turned = np.ascontiguousarray(split.images.reshape(shape).swapaxes(1, 2))
    return dataclasses.replace(split, images=turned)


def _read_mapping(path: str) -> tuple[str, ...]:
    """Reads lines of a label and the codes of its characters, the first upper case."""
    names: dict[int, str] = {}
    with open_file(path) as (file, _):
        lines = file.read(_MAX_MAPPING_BYTES).decode("ascii", "replace").splitlines()
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            label, code, *_ = map(int, line.split())
            if not (0 <= label < 256 and 32 < code < 127):
                raise ValueError("out of range")
        except ValueError as error:
            raise InputError(
                f"{quoted(path)}: found {line[:40]!r} in line {number}, expected a label "
                "and the code of its character"
            ) from error
        names[label] = chr(code)
    if not names:
        raise InputError(f"{quoted(path)}: found no lines, expected one a label")
    return tuple(names.get(label, str(label)) for label in range(max(names) + 1))
