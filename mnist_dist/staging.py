"""What is exported gets its name once it is whole, and what was killed leaves none."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator

import tensorflow as tf

from mnist_dist.errors import InputError, RunError


def prepare_directory(directory: str) -> None:
    """Creates a directory to export to, and removes what killed exports left in it.

    Raises:
      InputError: it is a file, or cannot be written to.
    """
    create_directory(directory, flag="--export_dir")
    _remove_leftovers(directory)


def create_directory(directory: str, *, flag: str) -> None:
    """Creates a directory to write to, which a flag names.

    Raises:
      InputError: it is a file, or cannot be written to.
    """
    try:
        os.makedirs(directory, exist_ok=True)
        is_writable = os.access(directory, os.W_OK)
    except OSError as error:
        raise InputError(
            f"{flag}: found {directory!r}, where no directory can be made: "
            f"{error.strerror}"
        ) from error
    if not is_writable:
        raise InputError(f"{flag}: found {directory!r}, expected one to write to")


@contextlib.contextmanager
def staging_path(directory: str, name: str) -> Iterator[str]:
    """Yields a path to write to in `directory`, which is gone after the block.

    Its name says whose it is, so that the next export knows whether that one lives.

    Raises:
      RunError: the block raised an error of TensorFlow's or the operating system's.
    """
    owner = f"{socket.gethostname()}-{os.getpid()}"
    # TensorFlow Serving looks at numbers only, and must never see half a model.
    path = os.path.join(directory, f".writing-{name}-{owner}")
    try:
        yield path
    except (tf.errors.OpError, OSError) as error:
        raise RunError(
            f"{os.path.join(directory, name)} cannot be written: "
            f"{getattr(error, 'message', None) or error}; nothing was published"
        ) from error
    finally:
        _remove(path)


def publish(staging: str, path: str, overwrite: bool) -> str:
    """Gives what was staged its name, in one step, once it is safely on disk.

    Raises:
      InputError: another process was first, and `overwrite` is not set.
    """
    _flush(staging)
    for folder, folders, names in os.walk(staging):
        for name in folders + names:
            _flush(os.path.join(folder, name))
    old = f"{staging}.old"
    try:
        if overwrite and os.path.exists(path):
            os.rename(path, old)
        os.rename(staging, path)
    except OSError as error:
        if os.path.exists(path):
            raise InputError(
                f"{path}: appeared while it was being exported; nothing was replaced"
            ) from error
        raise
    finally:
        _remove(old)
    _flush(os.path.dirname(path))
    return path


def _remove_leftovers(directory: str) -> None:
    """Removes what exports of this host that were killed have left behind."""
    host = socket.gethostname()
    for name in os.listdir(directory):
        owner, _, pid = name.removesuffix(".old").rpartition("-")
        if name.startswith(".writing-") and owner.endswith(f"-{host}"):
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                _remove(os.path.join(directory, name))
            except (ValueError, PermissionError):
                continue


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
