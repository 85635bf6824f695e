"""Standard output and error that can no longer be written.

The classes stand below Python's buffers: with PYTHONUNBUFFERED, which containers set,
nothing above them could tell a failed `print` from a file that failed.
"""

import errno
import io
import os
import sys
from typing import Any

_DESCRIPTORS = {"stdout": 1, "stderr": 2}


class OutputError(Exception):
    """Standard output takes no more; the cause says why.

    It is no `OSError`, so that it is not taken for an error of a file.
    """


def ignore_write_errors(name: str) -> None:
    """Keeps a standard stream that can no longer be written from ending the program.

    The pipe's reader or the terminal may go, the disk may be full, the encoding may
    lack a character. That must not end a training.

    Args:
      name: `stdout` or `stderr`; one that is not the interpreter's own stays.
    """
    if getattr(sys, name) is None:  # it was closed: no file must take its number
        os.dup2(os.open(os.devnull, os.O_WRONLY), _DESCRIPTORS[name])
    _wrap(name, _UnfailingFile, errors="backslashreplace")


def report_write_errors() -> None:
    """Has standard output raise an `OutputError` once when it cannot be written."""
    if sys.stdout is not None:
        _wrap("stdout", _ReportingFile, errors=sys.stdout.errors)


def flush_stdout() -> None:
    """Writes what is still to be written, as `report_write_errors` says."""
    if sys.stdout is not None:  # it may have been closed from the start
        sys.stdout.flush()


class _ReportingFile(io.FileIO):
    """Raises once when it cannot be written, and drops what comes after that."""

    is_lost = False

    def write(self, data: Any) -> int:
        if self.is_lost:
            return len(data)
        try:
            written = super().write(data)
            if written is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return written
        except OSError as error:
            self.is_lost = True
            raise OutputError(f"standard output: {error.strerror}") from error


class _UnfailingFile(io.FileIO):
    """Drops what cannot be written."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


def _wrap(name: str, kind: type[io.FileIO], *, errors: str | None) -> None:
    """Puts another class below a standard stream, if it is the interpreter's own."""
    stream = getattr(sys, name)
    if stream is not getattr(sys, f"__{name}__"):
        return
    wrapped = io.TextIOWrapper(
        io.BufferedWriter(kind(_DESCRIPTORS[name], "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors=errors,
        line_buffering=stream.line_buffering if stream else True,
        write_through=stream.write_through if stream else False,
    )
    setattr(sys, name, wrapped)
