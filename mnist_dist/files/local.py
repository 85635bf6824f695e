"""Paths of the operating system, and what lies there in place of a regular file.

A run may come from somebody else. Opening a named pipe waits for ever, reading a device
may never end, and what is written through a link lands outside the run.
"""

import contextlib
import os
import stat
from collections.abc import Iterator

from mnist_dist.errors import InputError

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_PATTERN_SIGNS = "*?[\\"
_DESCRIPTORS = "/proc/self/fd"  # of Linux: links to what this process has open


def is_local(path: str) -> bool:
    """Whether a path is the operating system's, not of a scheme as `gs://`."""
    return "://" not in path


def kind_at(path: str, *, follow_links: bool = False) -> str:
    """Returns what is at a path, as `a named pipe`; empty if nothing is."""
    if not is_local(path):
        import tensorflow as tf  # it takes seconds, and local paths do without

        if tf.io.gfile.exists(path):
            return "a folder" if tf.io.gfile.isdir(path) else "a file"
        return ""
    try:
        mode = os.stat(path, follow_symlinks=follow_links).st_mode
    except (OSError, ValueError):  # ValueError: NUL in the path
        return ""
    return _KINDS.get(stat.S_IFMT(mode), "something unknown")


def check_regular(path: str, *, follow_links: bool = True) -> None:
    """Checks that nothing but a regular file is at a path; there may be nothing.

    Raises:
      InputError: something else is there.
    """
    found = kind_at(path, follow_links=follow_links)
    if found not in ("", "a file"):
        raise InputError(f"{path}: found {found}, expected a regular file")


def check_regular_below(folder: str) -> None:
    """Checks that there are only regular files in a folder and in those below it.

    Links are followed. A folder with a scheme holds nothing else.

    Raises:
      InputError: something else is there.
    """
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        for name in names:
            check_regular(os.path.join(parent, name))
        folders[:] = [
            name
            for name in folders
            if os.path.realpath(os.path.join(parent, name)) not in seen  # a loop
        ]


def read_bytes(path: str, *, max_bytes: int) -> bytes | None:
    """Reads a whole regular file.

    Args:
      path: of the file, also with a scheme.
      max_bytes: what it may hold.

    Returns:
      Its content; None if nothing is there.

    Raises:
      InputError: it is no regular file, holds more, or cannot be read.
    """
    check_regular(path)
    try:
        if is_local(path):
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read() if size <= max_bytes else b""
        else:
            size, content = _read_remote(path, max_bytes=max_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from error
    if size > max_bytes:
        raise InputError(f"{path}: found {size} bytes, expected at most {max_bytes}")
    return content


def _read_remote(path: str, *, max_bytes: int) -> tuple[int, bytes]:
    """Returns the size of a file with a scheme, and its content unless it is too large.

    Raises:
      FileNotFoundError, OSError: as for a local one.
    """
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            size = file.size()
            return size, file.read() if size <= max_bytes else b""
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(path) from error
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


def check_readable(path: str) -> None:
    """Checks that `plain_folder` can have TensorFlow read what will be at a path.

    Raises:
      InputError: it cannot, on this system.
    """
    if is_local(path) and _is_pattern(path) and not os.path.isdir(_DESCRIPTORS):
        raise InputError(
            f"{path!r}: found one of the characters {_PATTERN_SIGNS}, which TensorFlow "
            "takes for a pattern; expected a path without them"
        )


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in _PATTERN_SIGNS)


@contextlib.contextmanager
def plain_folder(path: str) -> Iterator[str]:
    """Yields a path of a folder for TensorFlow's readers of checkpoints and SavedModels.

    These readers take some characters in a path for a pattern. If there is one, the
    block gets another path of the same folder, which is valid until the block ends.

    Raises:
      OSError: the folder cannot be opened.
      InputError: this system has no other path for it.
    """
    check_readable(path)
    if not is_local(path) or not _is_pattern(path):
        yield path
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield os.path.join(_DESCRIPTORS, str(descriptor))
    finally:
        os.close(descriptor)


def open_to_write(path: str, flags: int) -> int:
    """Opens a local file to write to, making it if it is not there.

    Args:
      path: of the file, or where it is to be.
      flags: of `os.open`: how it is opened.

    Returns:
      The descriptor.

    Raises:
      InputError: it is a link or no regular file.
      OSError: it cannot be opened.
    """
    check_regular(path, follow_links=False)  # opening a device may do something
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def is_at(path: str, descriptor: int) -> bool:
    """Whether an open file is still the one at a path: neither moved nor deleted.

    Raises:
      OSError: that cannot be found out.
    """
    try:
        found = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(found, os.fstat(descriptor))
