"""Draw examples from a split: each class in its share, the same at every start."""

from __future__ import annotations

import numpy as np

# Beside the numbers of the epochs, which are the other keys of the example stream.
_KEY = (1 << 64) - 1


def draw_stratified(labels: np.ndarray, *, count: int, seed: int) -> np.ndarray:
    """Draws examples so that each class has its share of them.

    Of a class with c of n examples, count * c / n are drawn, to within one. A class
    keeps one example that is not drawn, as long as there are enough others.

    The draw is a function of the arguments alone: it takes the raw words of a
    Philox generator, whose stream NumPy keeps for ever.

    Args:
      labels: int [n].
      count: how many to draw, 0 to n.
      seed: 0 to 2**64 - 1.

    Returns:
      int64 [count], indices in ascending order.
    """
    generator = np.random.Philox(key=np.array([seed, _KEY], dtype=np.uint64))
    words = generator.random_raw(len(labels))
    order = np.lexsort((words, labels))  # class by class, shuffled within each
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, sizes)
    # The examples of each class are spread evenly over [0, 1): what lies before any
    # point of it has each class in its share.
    position = (rank + 0.5) / np.repeat(sizes, sizes)
    position[first + sizes - 1] = 1
    drawn = order[np.argsort(position, kind="stable")[:count]]
    return np.sort(drawn)
