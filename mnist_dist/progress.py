"""The line that a person watches while a run trains."""

import shutil
import time
from collections.abc import Callable
from typing import TextIO

_REDRAW_SECONDS = 0.1  # on a terminal
_LINE_SECONDS = 10.0  # elsewhere, so that logs stay short


class Progress:
    """One updating line on a terminal, plain lines now and then elsewhere."""

    def __init__(
        self,
        *,
        total_steps: int,
        first_step: int,
        stream: TextIO | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock; a stream of None shows nothing."""
        self._total_steps = total_steps
        self._first_step = first_step
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._shown = -float("inf")
        self._line = ""
        self._is_terminal = stream is not None and stream.isatty()
        self._is_pending = False

    def update(
        self,
        *,
        step: int,
        epoch: float,
        loss: float,
        accuracy: float,
        images_per_second: float,
    ) -> None:
        """Shows where the run is; too frequent calls are left out."""
        now = self._clock()
        rate = (step - self._first_step) / max(now - self._began, 1e-9)
        left = (self._total_steps - step) / rate if rate > 0 else 0.0
        self._line = (
            f"step {step:,}/{self._total_steps:,}  {_minutes(left)} left  "
            f"epoch {epoch:.2f}  loss {loss:.4f}  accuracy {accuracy:.2%}  "
            f"{images_per_second:,.0f} images/s"
        )
        self._is_pending = True
        if now - self._shown >= (
            _REDRAW_SECONDS if self._is_terminal else _LINE_SECONDS
        ):
            self._shown = now
            self._show()

    def message(self, text: str) -> None:
        """Prints a line that stays."""
        self._write(f"\r\x1b[K{text}\n" if self._is_terminal else f"{text}\n")
        if self._is_terminal and self._line:
            self._show()

    def close(self) -> None:
        """Shows what was left out last, and ends the updating line."""
        if self._is_pending:
            self._show()
        if self._is_terminal and self._line:
            self._write("\n")

    def _show(self) -> None:
        self._is_pending = False
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r{self._line[:width]}\x1b[K")
        else:
            self._write(f"{self._line}\n")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self._stream = None  # nobody reads any more; the run goes on


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
