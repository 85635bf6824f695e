"""A file that grows by whole records."""

import os

import tensorflow as tf

from mnist_dist.errors import RunError
from mnist_dist.files.durable import reporting_errors
from mnist_dist.files.local import is_at, is_local, open_to_write


class AppendedFile:
    """A file that grows by whole records, each there for readers at once.

    A record reaches the file in one write, so that a reader, or a kill, sees all of it
    or nothing. TensorFlow's own writers buffer, and ignore a full disk between two
    flushes; this one does neither. Nor does it go on in silence with a file that was
    moved or deleted.
    """

    def __init__(self, path: str, *, so: str) -> None:
        """Opens a file for appending.

        Args:
          path: of the file, which need not be there.
          so: what an error leaves intact, for its message.

        Raises:
          InputError: it is a link, or no regular file.
          tf.errors.OpError, OSError: it cannot be opened.
        """
        self._path = path
        self._so = so
        self._is_closed = False
        if is_local(path):
            descriptor = open_to_write(path, os.O_WRONLY | os.O_APPEND)
            self._file = open(descriptor, "ab", buffering=0)  # noqa: SIM115
        else:
            self._file = tf.io.gfile.GFile(path, "ab")

    def write(self, data: bytes) -> None:
        """Appends one record.

        Raises:
          RunError: the disk is full, or the file was moved or deleted; likewise for the
            other methods.
        """
        with reporting_errors(self._path, so=self._so):
            if is_local(self._path):
                self._check_place()
                while data:
                    data = data[self._file.write(data) :]
            else:
                self._file.write(data)
                self._file.flush()

    def flush(self) -> None:
        """Returns when all records would outlast a power failure."""
        if is_local(self._path):
            with reporting_errors(self._path, so=self._so):
                self._check_place()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes; a second time it does nothing."""
        if not self._is_closed:
            self._is_closed = True
            try:
                self.flush()
            finally:
                self._file.close()

    def _check_place(self) -> None:
        if not is_at(self._path, self._file.fileno()):
            raise RunError(
                f"{self._path} was moved or deleted while it was being written; "
                "nothing more is written"
            )
