"""How many steps the device takes in one call."""

SECONDS_PER_CALL = 0.5  # long enough to hide Python, short enough to stop soon
MAX_GROWTH = 8  # from one call to the next: the first ones are slow to start


class Pacer:
    """Finds the number of steps that take about `SECONDS_PER_CALL`.

    Workers must take the same number: each tells its `wish` with a call, and what all
    take next is the chief's, which they learn from that call.

    Attributes:
      steps: of the next call.
      wish: what this worker would take after that.
    """

    def __init__(self, *, steps_per_loop: int, max_steps: int) -> None:
        """Begins with 1 step, or with `steps_per_loop`, which then stays, if not 0.

        Args:
          steps_per_loop: as many in every call; 0: as many as fit the time.
          max_steps: most that a call can take.
        """
        self._is_fixed = steps_per_loop > 0
        self._max_steps = max_steps
        self.steps = max_steps if self._is_fixed else 1
        self.wish = float(self.steps)

    def measure(self, num_steps: int, seconds: float) -> None:
        """Takes a call's duration into account for the wish."""
        if not self._is_fixed:
            fitting = num_steps * SECONDS_PER_CALL / max(seconds, 1e-6)
            self.wish = max(min(fitting, MAX_GROWTH * float(self.steps)), 1.0)

    def take(self, wish: float) -> None:
        """Takes as many steps in the next call as the chief wishes."""
        self.steps = min(int(wish), self._max_steps)
