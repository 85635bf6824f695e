"""Turns signals into a stop request that the training loop honours between two calls."""

import os
import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def stop_signals() -> list[signal.Signals]:
    """Returns `STOP_SIGNALS`, without SIGHUP where it is ignored, as under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [n for n in STOP_SIGNALS if not (is_ignored and n == signal.SIGHUP)]


def end_at_signals_as_process_1() -> None:
    """Has stop signals end process 1 of a container, as they end any other process.

    The kernel drops a signal to process 1 that has no handler.
    """
    if os.getpid() == 1:
        for number in stop_signals():
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, lambda number, frame: os._exit(128 + number))


class StopRequest:
    """Notes stop signals while it is entered; a SIGINT after one of them interrupts.

      with StopRequest() as stop:
          start_tensorflow()
          stop.listen()
          while not stop.is_made(): ...

    Until `listen` is called the signals are blocked, so none is lost to a handler that
    somebody else, as TensorFlow, puts in place meanwhile. A thread inherits the block
    from the thread that starts it: enter the request before there are other threads.
    Leaving it puts the earlier handlers and signal mask back.

    In a thread that is not the main one Python sets no handlers: there it notes no
    signals, and `request` alone makes it.

    Attributes:
      signal_name: the signal that made the request, or what `request` was told; None
        until then.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._signals: list[signal.Signals] = []
        self._is_listening = False

    def __enter__(self) -> "StopRequest":
        """Blocks the signals until `listen`."""
        if threading.current_thread() is threading.main_thread():
            self._signals = stop_signals()
            self._handlers = {n: signal.getsignal(n) for n in self._signals}
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        return self

    def listen(self) -> None:
        """Handles the signals, first those that wait. Must be called after entering."""
        for number in self._signals:
            signal.signal(number, self._note)
        self._is_listening = True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    def request(self, reason: str = "request") -> None:
        """Makes the request, from any thread."""
        self.signal_name = self.signal_name or reason

    def is_made(self) -> bool:
        """Whether `request` was called or a signal has arrived, blocked ones included."""
        waits_for_us = self._signals and not self._is_listening
        if waits_for_us and (waiting := signal.sigtimedwait(self._signals, 0)):
            self.request(signal.Signals(waiting.si_signo).name)
        return self.signal_name is not None

    def __exit__(self, *exception: object) -> None:
        """Puts the earlier handlers and signal mask back."""
        # getsignal gives None for a handler that was not installed from Python.
        for number in self._signals:
            signal.signal(number, self._handlers[number] or signal.SIG_DFL)
        if self._signals:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._signals, self._is_listening = [], False

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.signal_name is not None:
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)
