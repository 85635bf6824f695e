"""Files that a reader, a kill or a power failure finds whole or not at all.

A path with a scheme, as `gs://bucket/run`, is opened by TensorFlow. On a local one the
operating system is asked itself where TensorFlow cannot keep a promise: it knows no
fsync, tears what is appended into writes of 4,096 bytes, and deletes through links.
"""

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from mnist_dist.errors import RunError

# What reading or writing raises: of TensorFlow, of the operating system.
FILE_ERRORS = (tf.errors.OpError, OSError)

# No reader takes such a name for data: TensorBoard, TensorFlow Serving, ourselves.
_UNFINISHED = ".writing-"
_OLD = ".old:"  # and the name of a folder that is being replaced


def is_local(path: str) -> bool:
    """Whether a path is the operating system's, not of a scheme as `gs://`."""
    return "://" not in path


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
    """Gives a file to write; it is `path` once it is whole and on the disk.

    Raises:
      tf.errors.OpError, OSError: it cannot be written; what was there still is.
    """
    with publishing(path) as staging, tf.io.gfile.GFile(staging, "wb") as file:
        yield file


@contextlib.contextmanager
def publishing(path: str, *, overwrite: bool = True) -> Iterator[str]:
    """Gives a path to write a file or a folder to; once on the disk, it is `path`.

    After an error nothing of it is left. It takes its name in one step; a folder that
    replaces another in two, and after a kill between them `remove_unfinished` puts the
    old one back; one with a scheme file by file, and may be left in part.

    Raises:
      tf.errors.AlreadyExistsError: there is something at `path`, and no `overwrite`.
      tf.errors.OpError, OSError: it cannot be written.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (staging := os.path.join(folder, "staging"))
            _send(staging, path, overwrite=overwrite)
        return
    directory = os.path.dirname(path)
    staging = staging_path(directory)
    try:
        yield staging
        for folder, folders, names in os.walk(staging):
            for name in folders + names:
                sync(os.path.join(folder, name))
        sync(staging)
        if overwrite and os.path.isdir(staging) and os.path.isdir(path):
            _replace_folder(staging, path)
        else:
            tf.io.gfile.rename(staging, path, overwrite=overwrite)
        sync(directory)
    finally:
        with contextlib.suppress(*FILE_ERRORS):  # an error before is the one to tell
            remove(staging)


def staging_path(directory: str) -> str:
    """Returns where this process may write what is to have a name in `directory`."""
    owner = f"{socket.gethostname()}-{os.getpid()}"
    path = os.path.join(directory, f"{_UNFINISHED}{owner}")
    remove(path)  # of one killed that had this number: in containers they recur
    return path


def list_unfinished(directory: str) -> list[str]:
    """Returns the paths of what writers have not yet given its name in a directory."""
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
      is_mine: whether nobody else writes to it. If not, what may be of a process that
        lives stays: all but that of dead processes of this host.
    """
    for name in list_names(directory):
        if name.startswith(_UNFINISHED) and (is_mine or _is_of_the_dead(name)):
            path = os.path.join(directory, name)
            target = os.path.join(directory, name.partition(_OLD)[2])
            if _OLD in name and not os.path.lexists(target):
                os.rename(path, target)
            else:
                remove(path)


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
    old = f"{source}{_OLD}{os.path.basename(target)}"
    remove(old)
    os.rename(target, old)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(old, target)
        raise
    remove(old)


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
        staging = staging_path(os.path.dirname(target))
        tf.io.gfile.copy(source, staging, overwrite=True)
        tf.io.gfile.rename(staging, target, overwrite=True)


def _is_of_the_dead(name: str) -> bool:
    owner = name.removeprefix(_UNFINISHED).partition(_OLD)[0]
    host, _, pid = owner.rpartition("-")
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return host == socket.gethostname()
    except (ValueError, OverflowError, PermissionError):
        pass
    return False
