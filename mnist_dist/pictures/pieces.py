"""The connected pieces of a mask, and the lengths of its runs, in NumPy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """The pieces of a mask: pixels that touch, at a side or a corner, are one piece.

    Attributes:
      labels: int32 [h, w]: which piece a pixel belongs to, -1 for none.
      boxes: int64 [n, 4]: top, bottom, left, right of each piece; bottom and right
        are the first row and column that are not in it.
    """

    labels: np.ndarray
    boxes: np.ndarray


def label_pieces(mask: np.ndarray) -> Pieces:
    """Finds the connected pieces of a mask, bool [h, w].

    Runs of pixels in a row are joined with the runs that they touch in the next row;
    each then takes the smallest number among those it is joined with, until none
    changes. `scipy.ndimage.label` does the same, and is not worth a dependency here.
    """
    height, width = mask.shape
    starts, ends = _runs(mask)
    stride = width + 2
    # Runs b of the next row that touch run a: b ends and begins soon enough.
    first = np.searchsorted(ends, starts + stride, side="left")
    last = np.searchsorted(starts, ends + stride, side="right")
    counts = last - first
    a = np.repeat(np.arange(len(starts)), counts)
    b = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
    numbers = np.arange(len(starts))
    while True:
        smaller = np.minimum(numbers[a], numbers[b])
        joined = numbers.copy()
        np.minimum.at(joined, numbers[a], smaller)
        np.minimum.at(joined, numbers[b], smaller)
        while (joined != joined[joined]).any():
            joined = joined[joined]
        if (joined == numbers).all():
            break
        numbers = joined
    roots, numbers = np.unique(numbers, return_inverse=True)
    labels = np.full((height, width), -1, dtype=np.int32)
    labels[mask] = np.repeat(numbers, ends - starts)

    rows = starts // stride
    boxes = np.empty((len(roots), 4), dtype=np.int64)
    boxes[:, ::2] = max(height, width)
    boxes[:, 1::2] = 0
    for column, values, reduce in (
        (0, rows, np.minimum),
        (1, rows + 1, np.maximum),
        (2, starts - rows * stride - 1, np.minimum),
        (3, ends - rows * stride - 1, np.maximum),
    ):
        reduce.at(boxes[:, column], numbers, values)
    return Pieces(labels, boxes)


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Returns for each pixel of a mask the length of its run in its row, else 0.

    Args:
      mask: bool [h, w].

    Returns:
      int32 [h, w].
    """
    starts, ends = _runs(mask)
    lengths = np.zeros(mask.shape, dtype=np.int32)
    lengths[mask] = np.repeat(ends - starts, ends - starts)
    return lengths


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Returns a mask with all pixels within `radius` rows and columns of its own."""
    return grow_rows(grow_rows(mask, radius).T, radius).T


def grow_rows(mask: np.ndarray, radius: int) -> np.ndarray:
    """Returns a mask with all pixels within `radius` rows of its own."""
    height = len(mask)
    num_above = np.zeros((height + 1, mask.shape[1]), dtype=np.int32)
    np.cumsum(mask, axis=0, out=num_above[1:])
    rows = np.arange(height)
    first = np.maximum(rows - radius, 0)
    last = np.minimum(rows + radius + 1, height)
    return num_above[last] > num_above[first]


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the runs of all rows begin and end, each row padded by one."""
    padded = np.pad(mask, ((0, 0), (1, 1))).ravel()
    changes = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    return changes[::2], changes[1::2]
