"""The marker of a move: an empty file that says which checkpoints go out of the way.

`set_aside.py` writes it to a directory before the move, and removes it after it. While
it is there, checkpoints past its step do not count.
"""

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from mnist_dist.files.durable import list_names

_PREFIX = ".moving-to:"  # of the marker's name; the name of the folder follows


class Marker(NamedTuple):
    """Says that checkpoints are being moved out of the way.

    Attributes:
      step: the last that stays.
      folder: where the later ones go, by name.
    """

    step: int
    folder: str

    def path(self, directory: str) -> str:
        """Returns the path of the marker in a directory of checkpoints."""
        return os.path.join(directory, f"{_PREFIX}{self.folder}")


def find_marker(directory: str) -> Marker | None:
    """Returns the marker of a move that is going on, or was killed."""
    return find_marker_among(list_names(directory))


def find_marker_among(names: Iterable[str]) -> Marker | None:
    """Returns the marker among the names of a directory's files."""
    for name in names:
        match = re.fullmatch(re.escape(_PREFIX) + r"(later-than-(\d+)(\.\d+)?)", name)
        if match:
            return Marker(int(match[2]), match[1])
    return None
