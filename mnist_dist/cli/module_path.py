"""Where Python looks for modules: never first in the directory that a program runs in.

A file code.py or queue.py there would take the place of the standard library's, and one
named tensorflow.py would run.
"""

import os
import sys


def leave_working_directory() -> None:
    """Takes the working directory off the path, where `python -m` has put it first."""
    if not _is_safe() and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


def search_working_directory() -> None:
    """Puts the working directory last on the path, unless Python was told to be safe.

    That is by `python -I`, `python -P` or PYTHONSAFEPATH.
    """
    if not _is_safe() and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def interpreter_flags() -> list[str]:
    """Returns the flags that make another Python look where this one does."""
    if sys.flags.isolated:
        return ["-I"]
    return ["-P"] if _is_safe() else []


def _is_safe() -> bool:
    # The second came with Python 3.11.
    return bool(sys.flags.isolated or getattr(sys.flags, "safe_path", False))
