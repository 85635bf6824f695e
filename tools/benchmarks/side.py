"""What a framework's module gives for a side: how it trains, and what it predicts then."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from benchmarks.work import Case


class SideError(Exception):
    """A side cannot do what it was asked for."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A training of one case by one way of doing it.

    Attributes:
      train: makes one pass over the batches of the case, and returns when it is done.
      predict: maps images as `work.comparison_images` gives them to logits [n, 10].
    """

    train: Callable[[], object]
    predict: Callable[[np.ndarray], np.ndarray]


CreateSide = Callable[[Case], Side]


@dataclasses.dataclass(frozen=True)
class Rank:
    """Which worker of how many a process is, and where all of them listen.

    Attributes:
      number: of this worker, from 0.
      addresses: `host:port` of each; one or none where a process works alone.
    """

    number: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def is_alone(self) -> bool:
        """Whether there is no other worker."""
        return len(self.addresses) < 2


def num_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
