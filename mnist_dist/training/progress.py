"""The line that a person watches while a run trains."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import TextIO

_REDRAW_SECONDS = 0.1  # on a terminal
_LINE_SECONDS = 10.0  # elsewhere, so that logs stay short
_CLEAR = "\r\x1b[K"


class Progress:
    """One updating line on a terminal, plain lines now and then elsewhere.

    It never fails: without a reader, or a terminal that is still there, it is silent.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        stream: TextIO | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the line; a stream of None shows nothing."""
        self._total_steps = total_steps
        self._stream = stream
        self._clock = clock
        self._measured_from: tuple[int, float] | None = None  # step and time
        self._shown = -float("inf")
        self._fields: list[str] = []
        self._is_terminal = (
            stream is not None
            and stream.isatty()
            and os.environ.get("TERM") != "dumb"  # which cannot clear a line
        )
        self._is_pending = False
        # absl.logging and TensorFlow write to the same terminal.
        self._loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
        if self._is_terminal:
            for logger in self._loggers:
                logger.addFilter(self._make_room)

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
        left = self._seconds_left(step, now)
        self._fields = [
            f"step {step:,}/{self._total_steps:,}",
            *([] if left is None else [f"{_minutes(left)} left"]),
            f"epoch {epoch:.2f}",
            f"loss {loss:.4f}",
            f"accuracy {accuracy:.2%}",
            f"{images_per_second:,.0f} images/s",
        ]
        self._is_pending = True
        if now - self._shown >= (
            _REDRAW_SECONDS if self._is_terminal else _LINE_SECONDS
        ):
            self._shown = now
            self._show()

    def _seconds_left(self, step: int, now: float) -> float | None:
        """Returns the time to the last step; None while the speed is not known.

        The first steps are slow: they compile and find the length of a call. So the
        speed is measured from the first update on.
        """
        if self._measured_from is None:
            self._measured_from = step, now
        first_step, began = self._measured_from
        if step <= first_step or now <= began:
            return None
        return (self._total_steps - step) * (now - began) / (step - first_step)

    def message(self, text: str) -> None:
        """Prints a line that stays."""
        self._write(f"{_CLEAR}{text}\n" if self._is_terminal else f"{text}\n")
        if self._is_terminal and self._fields:
            self._show()

    def close(self) -> None:
        """Shows what was left out last, and ends the updating line."""
        if self._is_pending:
            self._show()
        if self._is_terminal:
            for logger in self._loggers:
                logger.removeFilter(self._make_room)
            if self._fields:
                self._write("\n")
                self._fields = []

    def _show(self) -> None:
        self._is_pending = False
        if self._is_terminal:
            width = shutil.get_terminal_size().columns
            self._write(f"{_CLEAR}{_fit(self._fields, width - 1)}")
        else:
            self._write("  ".join(self._fields) + "\n")

    def _make_room(self, record: logging.LogRecord) -> bool:
        """Clears the line for a log message; the next update draws it below."""
        del record
        self._write(_CLEAR)
        return True

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(
                text.encode(encoding, "backslashreplace").decode(encoding)
            )
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe, terminal or file
            self._stream = None


def _fit(fields: list[str], width: int) -> str:
    """Joins as many fields as fit whole: a number cut short would be another one."""
    while fields and len("  ".join(fields)) > width:
        fields = fields[:-1]
    return "  ".join(fields)


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
