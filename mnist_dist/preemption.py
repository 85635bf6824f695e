"""Signals -> a wish to stop, which the training loop grants between two calls."""

import signal
from types import FrameType


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.listen()

    def listen(self) -> None:
        """Handles the signals, also after someone else has taken them over."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
