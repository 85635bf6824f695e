"""Files that a reader, a kill or a power failure finds whole or not at all.

TensorFlow opens paths with a scheme, as `gs://bucket/run`. For local paths the operating
system is called directly where TensorFlow falls short: it has no fsync, splits what is
appended into writes of 4,096 bytes, and deletes through links.
"""

import contextlib
import ctypes
import fcntl
import math
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator

import tensorflow as tf

from mnist_dist.errors import RunError
from mnist_dist.files.local import is_at, is_local

# What TensorFlow and the operating system raise when a file cannot be used.
FILE_ERRORS = (tf.errors.OpError, OSError)

# Begins the name of a staging folder. TensorBoard, TensorFlow Serving and this package
# ignore such names.
_UNFINISHED = ".writing-"
# In a staging folder: a file that its writer locks, and a folder that is being replaced.
_LOCK = ".lock"
_OLD = ".old:"
_ABANDONED_SECONDS = 86400.0  # where no lock tells whether a writer lives
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def describe_error(error: Exception) -> str:
    """Returns in one line why one of `FILE_ERRORS`, or another, was raised."""
    words = getattr(error, "message", None) or getattr(error, "strerror", None)
    # Without the operation that TensorFlow puts around them.
    words = re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]$", "", words or str(error))
    lines = words.strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def reporting_errors(path: str, *, so: str) -> Iterator[None]:
    """Turns one of `FILE_ERRORS` into a `RunError`: what failed, why, what is left."""
    try:
        yield
    except FILE_ERRORS as error:
        failed = getattr(error, "filename", None) or path
        raise RunError(
            f"{failed} cannot be written: {describe_error(error)}; {so}"
        ) from error


def list_names(directory: str) -> list[str]:
    """Returns the names in a directory, sorted; none if there is no directory."""
    if is_local(directory):
        return sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    if not tf.io.gfile.isdir(directory):
        return []
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))


@contextlib.contextmanager
def replacing(path: str) -> Iterator[tf.io.gfile.GFile]:
    """Yields a file to write, which gets the name `path` once it is whole and on disk.

    Raises:
      tf.errors.OpError, OSError: it cannot be written; what was there still is.
    """
    with publishing(path) as staging, tf.io.gfile.GFile(staging, "wb") as file:
        file.write(b"")  # opens it: it is to be there also if nothing follows
        yield file


@contextlib.contextmanager
def publishing(path: str, *, overwrite: bool = True) -> Iterator[str]:
    """Yields a path to write a file or a folder to; once on disk, it becomes `path`.

    After an error nothing of it is left. After a kill the next process that publishes in
    this directory removes the rest. The name changes hands in one step, also where a
    folder is replaced. Some network disks cannot swap two folders: there it takes two
    steps, and after a kill between them `remove_unfinished` puts the old folder back.
    To a path with a scheme the files are copied one by one, and a kill may leave some.

    Raises:
      tf.errors.AlreadyExistsError: there is something at `path`, and no `overwrite`.
      tf.errors.OpError, OSError: it cannot be written.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (staging := os.path.join(folder, "staging"))
            _send(staging, path, overwrite=overwrite)
        return
    directory, name = os.path.dirname(path), os.path.basename(path)
    with contextlib.suppress(*FILE_ERRORS):  # in a shared folder they may be another's
        remove_unfinished(directory, is_mine=False)
    with staging_folder(directory) as folder:
        yield (staging := os.path.join(folder, name))
        for parent, folders, names in os.walk(staging):
            for inside in folders + names:
                sync(os.path.join(parent, inside))
        sync(staging)
        if overwrite and os.path.isdir(staging) and os.path.isdir(path):
            _replace_folder(staging, path)
        else:
            tf.io.gfile.rename(staging, path, overwrite=overwrite)
        sync(directory)


@contextlib.contextmanager
def staging_folder(directory: str) -> Iterator[str]:
    """Gives a new folder in `directory` for what must not be seen yet; removes it after.

    Its name has a random part: in containers, host names and process numbers come
    again. It holds a lock while its writer lives.

    Raises:
      tf.errors.OpError, OSError: it cannot be made.
    """
    with contextlib.ExitStack() as held:
        while True:
            folder = _unfinished_path(directory)
            tf.io.gfile.mkdir(folder)
            if not is_local(folder) or _lock(folder, held):
                break
        try:
            yield folder
        finally:
            # An error before is the one to tell.
            with contextlib.suppress(*FILE_ERRORS):
                _remove_staging(folder)


def list_unfinished(directory: str) -> list[str]:
    """Returns the paths of the staging folders in a directory."""
    return [
        os.path.join(directory, name)
        for name in list_names(directory)
        if name.startswith(_UNFINISHED)
    ]


def remove_unfinished(directory: str, *, is_mine: bool) -> None:
    """Removes what writers that were killed have left in a directory.

    A folder that one was about to replace first gets its name back.

    Args:
      directory: need not be there.
      is_mine: whether nobody else writes to it. If not, what may be of a writer that
        lives stays: one that holds its lock or, where there are no locks, one that has
        written in the last day.

    Raises:
      tf.errors.OpError, OSError: something cannot be removed.
    """
    for folder in list_unfinished(directory):
        with contextlib.ExitStack() as held:
            if not is_mine and not _is_abandoned(folder, held):
                continue
            for name in list_names(folder):
                target = os.path.join(directory, name.removeprefix(_OLD))
                if name.startswith(_OLD) and not os.path.lexists(target):
                    os.rename(os.path.join(folder, name), target)
            _remove_staging(folder)


def _unfinished_path(directory: str) -> str:
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
    return os.path.join(directory, f"{_UNFINISHED}{owner}")


def _lock(folder: str, held: contextlib.ExitStack) -> bool:
    """Locks a new staging folder; False if it was just taken for an abandoned one."""
    path = os.path.join(folder, _LOCK)
    try:
        lock = held.enter_context(open(path, "wb"))  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return False
    except OSError:  # a disk without locks
        return True
    return is_at(path, lock.fileno())


def _remove_staging(folder: str) -> None:
    """Removes a staging folder, its lock last: what a kill leaves of it is known by it."""
    for name in list_names(folder):
        if name != _LOCK:
            remove(os.path.join(folder, name))
    remove(folder)


def _is_abandoned(folder: str, held: contextlib.ExitStack) -> bool:
    """Whether the writer of a staging folder is dead; `held` keeps the folder's lock."""
    try:
        descriptor = os.open(
            os.path.join(folder, _LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        )
        lock = held.enter_context(open(descriptor, "rb"))  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # it has no lock, or the disk has none
        if isinstance(error, FileNotFoundError) and not list_names(folder):
            return True  # if its writer is about to lock it, it makes another
        return time.time() - _last_change(folder) > _ABANDONED_SECONDS
    return True


def _last_change(folder: str) -> float:
    """Returns when something in a folder changed last, in seconds since 1970."""
    if not is_local(folder):
        # Some stores know no time of a folder: then it is young for ever.
        return tf.io.gfile.stat(folder).mtime_nsec / 1e9 or math.inf
    times = [os.lstat(folder).st_mtime]
    for parent, folders, names in os.walk(folder):
        for name in folders + names:
            with contextlib.suppress(OSError):
                times.append(os.lstat(os.path.join(parent, name)).st_mtime)
    return max(times)


def remove(path: str) -> None:
    """Removes a file or a folder, if it is there; of a link the link alone."""
    if not is_local(path):
        if tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)
        elif tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def sync(path: str) -> None:
    """Has the disk keep a file, or a directory's names, through a power failure."""
    if is_local(path):
        descriptor = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace_folder(source: str, target: str) -> None:
    """Gives a folder the name of another, which goes to the folder that it was in."""
    if _exchange(source, target):
        return
    old = os.path.join(os.path.dirname(source), f"{_OLD}{os.path.basename(target)}")
    os.rename(target, old)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(old, target)
        raise


def _exchange(first: str, second: str) -> bool:
    """Swaps two names in one step; False where the system, or the disk, cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    names = os.fsencode(first), os.fsencode(second)
    result = renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return result == 0


def _send(source: str, target: str, *, overwrite: bool) -> None:
    """Copies to where there are no folders to rename; each file appears whole."""
    if not overwrite and tf.io.gfile.exists(target):
        raise tf.errors.AlreadyExistsError(None, None, f"{target} is there")
    if os.path.isdir(source):
        remove(target)
        tf.io.gfile.makedirs(target)
        # Folders first: what readers look for, as saved_model.pb, lies on top.
        paths = sorted(
            os.scandir(source), key=lambda entry: (entry.is_file(), entry.name)
        )
        for entry in paths:
            _send(entry.path, os.path.join(target, entry.name), overwrite=True)
    else:
        staging = _unfinished_path(os.path.dirname(target))
        tf.io.gfile.copy(source, staging, overwrite=True)
        tf.io.gfile.rename(staging, target, overwrite=True)
