"""When to say again what is waited for."""

import time


class Reminder:
    """Is due once after a while, and then now and again."""

    def __init__(self, *, first: float = 10.0, interval: float = 60.0) -> None:
        self._next = time.monotonic() + first
        self._interval = interval

    def is_due(self) -> bool:
        """Whether it is time to say it; no longer so after that."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._interval
        return True
