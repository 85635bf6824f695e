"""Where the time of a training goes."""

import collections
import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Adds up the seconds of each activity, and of all together."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def measuring(self, activity: str) -> Iterator[None]:
        """Adds the time of its body to an activity."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(activity, time.perf_counter() - began)

    def add(self, activity: str, seconds: float) -> None:
        """Adds time that was measured otherwise."""
        self._seconds[activity] += seconds

    def take(self) -> dict[str, float]:
        """Returns the seconds since the last call, by activity, and begins anew.

        `host` is the time of no activity. All together are the time that went by.
        """
        now = time.perf_counter()
        seconds = dict(self._seconds)
        seconds["host"] = max(now - self._began - sum(seconds.values()), 0.0)
        self._began = now
        self._seconds.clear()
        return seconds
