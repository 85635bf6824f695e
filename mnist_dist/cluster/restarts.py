"""Counts the restarts of a launch, and tells which worker is better given up."""

import os

from mnist_dist.cluster.worker_group import Worker
from mnist_dist.errors import EXIT_STOPPED

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds before a restart
_MOST_FRUITLESS = 3  # starts in a row without a new checkpoint, whoever was the cause


class Restarts:
    """Counts the restarts of a launch, and what its failures have in common.

    Attributes:
      count: restarts that were counted.
      delay: seconds before the next; it grows while failures follow each other without
        a new checkpoint.
    """

    def __init__(self, max_restarts: int, *, model_dir: str | None) -> None:
        """Begins with no failure.

        Args:
          max_restarts: how often all workers may be started again.
          model_dir: of the run; None is for workers that are no training.
        """
        self.count = 0
        self.delay = FIRST_DELAY
        self._max = max_restarts
        self._model_dir = model_dir
        self._checkpoints: frozenset[str] = frozenset()
        self._failed_rank: int | None = None
        self._is_repeated = False
        self._num_fruitless = 0

    def begin_attempt(self) -> None:
        """Is called before the workers are started."""
        self._checkpoints = self._list_checkpoints()

    def note(self, failed: Worker) -> None:
        """Takes a failure into account."""
        has_moved = self._list_checkpoints() != self._checkpoints
        self.delay = FIRST_DELAY if has_moved else min(2 * self.delay, LONGEST_DELAY)
        self._num_fruitless = 0 if has_moved else self._num_fruitless + 1
        # One that only lost the others is not the cause.
        rank = failed.rank if failed.exit_code() != EXIT_STOPPED else None
        self._is_repeated = (
            rank is not None and rank == self._failed_rank and not has_moved
        )
        self._failed_rank = rank

    def begin_with_fewer(self) -> None:
        """Is called when a worker is given up: other workers have its rank now."""
        self._failed_rank = None
        self._num_fruitless = 0

    @property
    def is_lost_for_good(self) -> bool:
        """Whether the worker that failed last is better not started again.

        It is not where no restart is left, or where it has failed twice in a row without
        a new checkpoint in between.
        """
        return self._is_repeated or self.is_last

    @property
    def is_fruitless(self) -> bool:
        """Whether too many starts in a row have made no checkpoint, as far as is known."""
        is_known = self._model_dir is not None and "://" not in self._model_dir
        return is_known and self._num_fruitless > max(self._max, _MOST_FRUITLESS)

    @property
    def is_last(self) -> bool:
        """Whether no restart is left."""
        return self.count >= self._max

    def count_one(self) -> str:
        """Counts a restart, and returns how it is told."""
        self.count += 1
        return f"restart {self.count} of {self._max} in {self.delay:g} s"

    def _list_checkpoints(self) -> frozenset[str]:
        try:
            return frozenset(
                os.listdir(os.path.join(self._model_dir or "", "checkpoints"))
            )
        except OSError:
            return frozenset()
