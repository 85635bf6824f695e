"""Decides when to tell a person again what a program is waiting for."""

import time


class Reminder:
    """Is due once after `first` seconds, then every `interval` seconds."""

    def __init__(self, *, first: float = 10.0, interval: float = 60.0) -> None:
        self._next = time.monotonic() + first
        self._interval = interval

    def is_due(self) -> bool:
        """Whether a message is due now; asking starts the next interval."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._interval
        return True
