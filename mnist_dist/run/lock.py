"""Who may write to a run: one process at a time, as long as MODEL_DIR is where it was."""

import contextlib
import fcntl
import os
import socket
import time
from typing import BinaryIO

import tensorflow as tf
from absl import logging

from mnist_dist.errors import InputError, RunError
from mnist_dist.files.durable import (
    FILE_ERRORS,
    describe_error,
    remove_unfinished,
    reporting_errors,
)
from mnist_dist.files.local import is_at, is_local, open_to_write
from mnist_dist.run.checkpoints import finish_interrupted_saves
from mnist_dist.run.directory import check_own
from mnist_dist.run.paths import LOCK, checkpoint_dirs
from mnist_dist.run.set_aside import finish_setting_aside

_PAUSES = (0.01, 0.1)  # seconds between attempts to take the lock


class RunLock:
    """Makes this process the only writer of a run, until it is closed.

    The operating system holds the lock, so that a dead process's is gone. The lock is
    on a file, the run is a path: `check` tells whether they still belong together.
    """

    def __init__(self, model_dir: str, file: BinaryIO | None) -> None:
        """Use `open_for_writing`.

        Args:
          model_dir: of the run.
          file: `MODEL_DIR/.lock`, open; None where there are no locks.
        """
        self._model_dir = model_dir
        self._file = file

    def check(self) -> None:
        """Checks, before something is written, that the run is where it was.

        Raises:
          RunError: MODEL_DIR, or its `.lock`, was moved, deleted or replaced.
        """
        if self._file is None:
            return
        path = os.path.join(self._model_dir, LOCK)
        with reporting_errors(path, so="nothing more of the run was written"):
            if not is_at(path, self._file.fileno()):
                raise RunError(
                    f"{self._model_dir} was moved or deleted while the run was being "
                    "written: its .lock is gone or another file; nothing more was "
                    "written there"
                )

    def close(self) -> None:
        """Lets others write; a second time it does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "RunLock":
        """Does nothing: it holds already."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes it."""
        self.close()


def open_for_writing(model_dir: str) -> RunLock:
    """Creates the directory of a run, and makes this process its only writer.

    Where there are no locks, for a path with a scheme or on some network disks, a
    warning says so.

    Raises:
      InputError: there is a file, a link in place of a part of the run, the directory
        cannot be written to, or another process writes to it.
      RunError: a checkpoint whose writer was killed cannot be completed.
    """
    lock = _lock(model_dir)
    try:
        check_own(model_dir)
        for directory in checkpoint_dirs(model_dir):
            with reporting_errors(directory, so="nothing in it was changed"):
                finish_interrupted_saves(directory)
                remove_unfinished(directory, is_mine=True)
        finish_setting_aside(model_dir)
        lock.check()
    except BaseException:
        lock.close()
        raise
    return lock


def _lock(model_dir: str) -> RunLock:
    try:
        tf.io.gfile.makedirs(model_dir)
        if not is_local(model_dir):
            _warn_of_no_lock(model_dir, "it is not on this host")
            return RunLock(model_dir, None)
        descriptor = open_to_write(os.path.join(model_dir, LOCK), os.O_RDWR)
    except (*FILE_ERRORS, UnicodeError) as error:
        raise InputError(
            f"--model_dir: found {model_dir!r}, expected a directory to write to: "
            f"{describe_error(error)}"
        ) from error
    file = open(descriptor, "rb+", buffering=0)  # noqa: SIM115
    try:
        _take(file)
    except BlockingIOError as error:
        holder = file.read(200).decode(errors="replace").strip() or "another process"
        file.close()
        raise InputError(
            f"--model_dir: {model_dir} is being written by {holder}, expected a run "
            "that nobody writes"
        ) from error
    except OSError as error:
        _warn_of_no_lock(model_dir, describe_error(error))
    with contextlib.suppress(OSError):  # a full disk; it only tells others who we are
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return RunLock(model_dir, file)


def _take(lock: BinaryIO) -> None:
    # Not once alone: who looks whether it is taken holds it for a moment.
    for seconds in _PAUSES:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(seconds)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _warn_of_no_lock(model_dir: str, why: str) -> None:
    logging.warning(
        "%s cannot be locked (%s): see that no other run writes to it", model_dir, why
    )
