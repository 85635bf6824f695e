"""Finds the lines of ruled and squared paper in a picture."""

from __future__ import annotations

import numpy as np

from mnist_dist.pictures.pieces import grow_rows, label_pieces, run_lengths

_THICKEST_LINE = 0.03  # of the picture's height: thicker ones are strokes


def find_lines(is_ink: np.ndarray) -> np.ndarray | None:
    """Returns where ruled lines are, without the strokes across them; None if nowhere.

    Args:
      is_ink: bool [h, w], faint ink too.
    """
    if min(is_ink.shape) < 64:
        return None
    across, down = _find_rows(is_ink), _find_rows(is_ink.T)
    if across is None:
        return None if down is None else down.T
    return across if down is None else across | down.T


def _find_rows(is_ink: np.ndarray) -> np.ndarray | None:
    """Returns where horizontal lines are: thin, from edge to edge, perhaps askew.

    A single line does not count where ink fills the picture from top to bottom: it may
    be the bar of a 4 that was cut out closely.
    """
    height, width = is_ink.shape
    drift = max(1, height // 100)  # of a line that is askew, over half of the picture
    # First coarsely, which is fast: most pictures have no lines.
    step = max(1, width // 32)
    blocks = is_ink[:, : width // step * step].reshape(height, -1, step)
    coarse = np.asarray(np.any(blocks, axis=2))
    if 2 * grow_rows(coarse, drift).sum(axis=1).max() < coarse.shape[1]:
        return None
    is_long = 2 * run_lengths(grow_rows(is_ink, drift)) >= width
    bands = label_pieces(is_long)
    top, bottom, left, right = bands.boxes.T
    is_line = (left <= width / 100) & (right >= width - width / 100)
    is_line &= (top > 0) & (bottom < height)
    if not is_line.any() or (is_line.sum() == 1 and is_ink[[0, -1]].any(axis=1).all()):
        return None
    is_thin = run_lengths(is_ink.T).T <= max(2, _THICKEST_LINE * height)  # noqa: SIM300
    return is_ink & is_thin & np.append(is_line, False)[bands.labels]
