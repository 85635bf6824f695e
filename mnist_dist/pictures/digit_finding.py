"""Find the digit in a picture: what is ink, and which pieces of the ink are the digit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mnist_dist.pictures.pieces import Pieces, grow, label_pieces
from mnist_dist.pictures.ruled_lines import find_lines

# Share of the pixels that may differ more from the paper than the ink does.
_SPECKS = 0.001
# From paper (0) to ink (1): what is certainly ink, and what is if ink is beside it.
_STRONG, _WEAK = 0.5, 0.25
_SMALLEST_DIGIT = 0.05  # of the picture's longer side: smaller pieces are marks


class Digit(NamedTuple):
    """A digit that was found in a picture.

    Attributes:
      density: float32 [h, w] of the digit's box, from 0 for the paper to 1 for the
        ink; more where ink is darker, and 0 where it belongs to other pieces.
      num_digits: how many pieces of the picture may be digits; this is the largest.
    """

    density: np.ndarray
    num_digits: int


class _Found(NamedTuple):
    """What `_find` found: a digit, its place, and whether it may be something else.

    Attributes:
      digit: the density in the box.
      box: top, bottom, left, right.
      touches_edge: whether it touches the picture's edge, so may be no digit.
      sheet: bool [h, w] in the box: where ink may be, if this is a sheet of paper and
        no digit; else None.
    """

    digit: Digit
    box: tuple[int, int, int, int]
    touches_edge: bool
    sheet: np.ndarray | None


def find_digit(image: np.ndarray) -> Digit | None:
    """Finds the largest digit in a picture, dark on light or light on dark.

    The paper is of the shade of most of the picture's edge; the ink is what differs
    from it. Of the connected pieces of ink the largest that does not touch the edge is
    the digit, with the pieces close to it: the table beside the sheet, specks and
    frames are left out. Lines from edge to edge are taken out before. Where the piece
    is itself a sheet with ink on it, the digit is looked for on the sheet.

    Args:
      image: uint8 [h, w].

    Returns:
      The digit, or None if the picture is of one shade.
    """
    found = _find(image)
    if found is not None and found.sheet is not None:
        top, bottom, left, right = found.box
        sheet = image[top:bottom, left:right]
        paper = np.uint8(np.median(sheet[found.sheet]))
        border = _border(sheet.shape)
        inner = slice(border, -border), slice(border, -border)
        on_sheet = _find(np.where(found.sheet, sheet, paper)[inner])
        if on_sheet is not None and not on_sheet.touches_edge:
            return on_sheet.digit
    return found and found.digit


def _find(image: np.ndarray) -> _Found | None:
    """Finds the largest piece of ink, of the two kinds of ink the more distinct first."""
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    paper = int(np.median(edge))
    num_specks = int(image.size * _SPECKS)
    num_up_to = np.cumsum(np.bincount(image.ravel(), minlength=256))
    darkest, lightest = np.searchsorted(
        num_up_to, [num_specks + 1, image.size - num_specks]
    )
    contrasts = sorted((int(darkest) - paper, int(lightest) - paper), key=abs)
    best = None
    for contrast in reversed(contrasts):
        if contrast == 0 or 2 * abs(contrast) < abs(contrasts[-1]):
            continue
        # How much ink a pixel of each shade has.
        density = (np.arange(256, dtype=np.float32) - paper) / contrast
        found = _find_ink(image, density)
        if found is not None and not found.touches_edge:
            return found
        best = best or found
    return best


def _find_ink(image: np.ndarray, density: np.ndarray) -> _Found | None:
    """Finds the largest digit of one kind of ink.

    Args:
      image: uint8 [h, w].
      density: float32 [256], how much ink a pixel of each shade has.
    """
    is_ink = np.take(density > _STRONG, image)
    is_line = find_lines(np.take(density > _WEAK, image))
    if is_line is not None:
        is_ink &= ~is_line
    pieces = label_pieces(is_ink)
    if not len(pieces.boxes):
        return None
    ink = np.take(density, image)
    if is_line is not None:
        ink[is_line] = 0
    mass = np.bincount(pieces.labels[is_ink], weights=np.minimum(ink[is_ink], 1))
    candidates = _find_candidates(pieces, mass, image.shape)
    main = candidates[np.argmax(mass[candidates])]
    # The last is for pixels of no piece.
    is_digit = np.append(_find_parts(main, pieces.boxes, mass), False)
    box = _bounding_box(pieces.boxes[is_digit[:-1]])
    kept, box = _add_faint_ink(ink, pieces.labels, is_digit, box)

    top, bottom, left, right = box
    inside = pieces.labels[top:bottom, left:right]
    is_digit[inside[kept]] = True
    is_digit[-1] = False
    others = candidates[~is_digit[candidates]]
    heights = pieces.boxes[others, 1] - pieces.boxes[others, 0]
    is_second = (2 * heights >= bottom - top) & (5 * mass[others] >= mass[main])
    return _Found(
        Digit(np.where(kept, ink[top:bottom, left:right], 0), 1 + int(is_second.sum())),
        box,
        touches_edge=bool(
            (_touches_edge(pieces.boxes, image.shape) & is_digit[:-1]).any()
        ),
        sheet=_find_sheet(is_digit[inside]),
    )


def _touches_edge(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    top, bottom, left, right = boxes.T
    return (top == 0) | (left == 0) | (bottom == shape[0]) | (right == shape[1])


def _bounding_box(boxes: np.ndarray) -> tuple[int, int, int, int]:
    top, bottom, left, right = boxes.T
    return int(top.min()), int(bottom.max()), int(left.min()), int(right.max())


def _find_candidates(
    pieces: Pieces, mass: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Returns the pieces that may be digits: all, if there are none but marks."""
    top, bottom, left, right = pieces.boxes.T
    smallest = max(_SMALLEST_DIGIT * max(shape), 4)
    is_large = np.maximum(bottom - top, right - left) >= smallest
    candidates = np.flatnonzero(is_large & ~_touches_edge(pieces.boxes, shape))
    if not len(candidates):
        return np.arange(len(mass))
    # A frame has little ink in its box, and another piece inside.
    is_frame = np.zeros(len(mass), dtype=bool)
    for i in candidates[(mass / ((bottom - top) * (right - left)))[candidates] < 0.3]:
        is_inside = (top > top[i]) & (bottom < bottom[i])
        is_inside &= (left > left[i]) & (right < right[i])
        is_frame[i] = is_inside[candidates].any()
    return candidates[~is_frame[candidates]]


def _find_parts(main: int, boxes: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Returns bool [pieces]: the parts of the digit whose largest piece is `main`.

    Parts are short, as the bar of a 5 that the pen set anew, or lie one above the
    other. What is as high as the digit and beside it is another digit, unless the gap
    is tiny. What has less than a fiftieth of the ink is a mark.
    """
    top, bottom, left, right = boxes.T
    height = bottom[main] - top[main]
    size = max(height, right[main] - left[main])
    is_part = np.arange(len(boxes)) == main
    is_around = (top < top[main]) & (bottom > bottom[main])
    is_around &= (left < left[main]) & (right > right[main])
    num_parts = 0
    while num_parts < is_part.sum():
        num_parts = is_part.sum()
        box = _bounding_box(boxes[is_part])
        above = np.maximum(box[0] - bottom, top - box[1])
        beside = np.maximum(box[2] - right, left - box[3])
        gap = np.maximum(above, beside)
        is_close = gap <= 0.05 * size
        is_close |= (gap <= 0.25 * size) & (beside < 0)
        is_close |= (gap <= 0.35 * size) & (bottom - top < height / 2)
        is_part |= is_close & ~is_around & (mass >= 0.02 * mass[main])
    return is_part


def _add_faint_ink(
    ink: np.ndarray,
    labels: np.ndarray,
    is_digit: np.ndarray,
    box: tuple[int, int, int, int],
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Adds to a digit's pieces their soft border, and faint strokes that they touch.

    Faint ink counts if it ends near the digit. What reaches farther is a shadow or
    squared paper.

    Args:
      ink: float32 [h, w], of each pixel.
      labels: int [h, w], the piece of each pixel, -1 for none.
      is_digit: bool [pieces + 1], the digit's pieces; the last is False.
      box: of these pieces.

    Returns:
      bool [h', w'], the pixels of the digit in its box; and that box, which faint
      strokes may have enlarged.
    """
    size = max(box[1] - box[0], box[3] - box[2])
    top, left = max(box[0] - size // 2, 0), max(box[2] - size // 2, 0)
    window = (
        slice(top, box[1] + size // 2 + 1),
        slice(left, box[3] + size // 2 + 1),
    )
    labels = labels[window]
    own = is_digit[labels]
    near = grow(own, max(2, size // 10)) & (own | (labels < 0))
    faint = label_pieces(ink[window] > _WEAK)
    is_linked = np.zeros(len(faint.boxes) + 1, dtype=bool)
    is_linked[faint.labels[own]] = True
    linked = is_linked[faint.labels]
    kept, extent = near, own
    if not _reaches_out(linked, labels >= 0, window, ink.shape):
        kept, extent = near | linked, own | (linked & ~near)
    rows = np.flatnonzero(extent.any(axis=1))
    columns = np.flatnonzero(extent.any(axis=0))
    first, last = rows[0], rows[-1] + 1
    start, end = columns[0], columns[-1] + 1
    box = int(top + first), int(top + last), int(left + start), int(left + end)
    return kept[first:last, start:end], box


def _reaches_out(
    linked: np.ndarray,
    is_strong: np.ndarray,
    window: tuple[slice, slice],
    shape: tuple[int, ...],
) -> bool:
    """Whether ink leaves the window, or faint ink touches the picture's edge."""
    rows, columns = window
    for side, is_picture_edge in (
        ((0, slice(None)), rows.start == 0),
        ((-1, slice(None)), rows.stop >= shape[0]),
        ((slice(None), 0), columns.start == 0),
        ((slice(None), -1), columns.stop >= shape[1]),
    ):
        found = linked[side] & ~is_strong[side] if is_picture_edge else linked[side]
        if found.any():
            return True
    return False


def _find_sheet(mask: np.ndarray) -> np.ndarray | None:
    """Returns where a sheet of paper is, but for its border; None if it is none.

    A sheet is a rectangle, turned by up to 20 degrees, with holes where the ink is.

    Args:
      mask: bool [h, w], a piece in its box.
    """
    if mask.mean() < 0.5 or min(mask.shape) < 20:
        return None
    outside = label_pieces(~mask)
    is_hole = np.append(~_touches_edge(outside.boxes, mask.shape), False)
    filled = mask | is_hole[outside.labels]
    if mask.sum() < 0.75 * filled.sum():
        return None
    y = np.repeat(np.arange(len(filled)), 2)
    begins, ends = filled.argmax(axis=1), filled[:, ::-1].argmax(axis=1)
    x = np.stack([begins, filled.shape[1] - ends], axis=1).ravel()
    angles = np.radians(np.arange(-20, 21))[:, np.newaxis]
    widths = np.ptp(np.cos(angles) * x - np.sin(angles) * y, axis=1)
    heights = np.ptp(np.sin(angles) * x + np.cos(angles) * y, axis=1)
    if filled.sum() < 0.88 * (widths * heights).min():
        return None
    return ~grow(~filled, _border(mask.shape))


def _border(shape: tuple[int, ...]) -> int:
    """Returns how many pixels of a sheet of paper are its border, and its shadow."""
    return max(1, max(shape) // 50)
