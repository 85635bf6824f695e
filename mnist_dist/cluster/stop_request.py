"""Signals -> a wish to stop, which the training loop grants between two calls."""

import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1; a SIGINT after one of them interrupts at once.

    Until it is told to `listen` the signals wait, and none is lost to a handler that
    someone else puts in place meanwhile. Threads hold signals back as the one does
    that started them: create it before there are others.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def listen(self) -> None:
        """Handles the signals, first those that wait."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def is_made(self) -> bool:
        """Whether a signal has come, noted or waiting."""
        return self.signal_name is not None or not signal.sigpending().isdisjoint(
            _SIGNALS
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
