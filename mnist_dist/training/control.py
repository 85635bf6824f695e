"""How workers agree, between two calls, on whether to stop and how many steps come next.

Each worker's control values ride in the steps' all-reduce, so that no message of its
own is needed. What comes back is the same on all workers: the sum of the stop requests,
and the chief's number of steps.
"""

from collections.abc import Callable

SECONDS_PER_CALL = 0.5  # long enough to hide Python, short enough to stop soon
MAX_GROWTH = 8  # from one call to the next: the first ones are slow to start


class Control:
    """Decides how many steps the next call takes, and whether the run is to stop.

    The number of steps is fixed, or such that a call takes about `SECONDS_PER_CALL`.

    Attributes:
      num_steps: of the next call at most.
      is_stopping: whether a worker was asked to stop; all learn it from the same call.
    """

    def __init__(
        self,
        *,
        steps_per_loop: int,
        max_steps: int,
        num_workers: int,
        is_stop_requested: Callable[[], bool],
    ) -> None:
        """Begins with 1 step, or with `steps_per_loop`, which then stays, if not 0.

        Args:
          steps_per_loop: as many in every call; 0: as many as fit the time.
          max_steps: most that a call can take.
          num_workers: with one alone a stop request counts at once.
          is_stop_requested: whether this worker was asked to stop.
        """
        self._is_fixed = steps_per_loop > 0
        self._max_steps = max_steps
        self._is_alone = num_workers == 1
        self._is_stop_requested = is_stop_requested
        self._was_told_to_stop = False
        self.num_steps = max_steps if self._is_fixed else 1
        self._fitting_steps = float(self.num_steps)

    @property
    def is_stopping(self) -> bool:
        """Whether the run is to stop now."""
        return self._is_stop_requested() if self._is_alone else self._was_told_to_stop

    def values(self) -> list[float]:
        """Returns this worker's control values: 1 to stop or else 0; steps that fit."""
        return [float(self._is_stop_requested()), self._fitting_steps]

    def update(
        self, num_steps: int, seconds: float, *, agreed: tuple[float, float]
    ) -> None:
        """Takes a call into account.

        Args:
          num_steps: that it took.
          seconds: that it took.
          agreed: the control values that came back from it: the sum of the stop
            requests, and the steps that fit the chief's time.
        """
        if not self._is_fixed:
            fitting = num_steps * SECONDS_PER_CALL / max(seconds, 1e-6)
            self._fitting_steps = max(
                min(fitting, MAX_GROWTH * float(self.num_steps)), 1.0
            )
        # A worker alone uses its newest measurement: nobody has to agree to it.
        steps = self._fitting_steps if self._is_alone else agreed[1]
        self.num_steps = min(int(steps), self._max_steps)
        self._was_told_to_stop = agreed[0] > 0
