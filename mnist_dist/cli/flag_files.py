"""Flag files are looked at before absl reads them, which would wait for a pipe for ever."""

import os
from collections.abc import Iterator, Sequence

from mnist_dist.errors import InputError
from mnist_dist.files.local import check_regular

_MAX_BYTES = 1 << 20
_NAMES = ("-flagfile", "--flagfile")
# What a shell opened for this process: `--flagfile=<(command)`, `--flagfile=/dev/stdin`.
_OPENED = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


def check_flag_files(argv: Sequence[str]) -> None:
    """Checks that each flag file of a command line, and each that one names, is a file.

    Raises:
      InputError: one is a named pipe, a device, a folder, longer than 1 MiB, or no text
        in UTF-8.
    """
    waiting = [path for path in _named(argv) if not path.startswith(_OPENED)]
    for path in waiting:
        check_regular(path)
        try:
            with open(path, "rb") as file:
                content = file.read(_MAX_BYTES + 1)
            lines = content.decode().splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"--flagfile: {path}: {error}, expected UTF-8") from None
        except (OSError, ValueError):  # ValueError: NUL in the path
            continue  # absl says that it is not there, or cannot be read
        if len(content) > _MAX_BYTES:
            raise InputError(
                f"--flagfile: {path}: found more than {_MAX_BYTES:,} bytes, expected flags"
            )
        waiting += [p for p in _named(map(str.strip, lines)) if p not in waiting]


def _named(words: Sequence[str] | Iterator[str]) -> Iterator[str]:
    """Gives the flag files that words name, as absl takes them."""
    is_next = False
    for word in words:
        name, equals, path = word.partition("=")
        if is_next or (name in _NAMES and equals):
            yield os.path.expanduser((word if is_next else path).strip())
        is_next = word in _NAMES and not is_next
