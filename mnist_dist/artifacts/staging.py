"""What is exported gets its name once it is whole, and what was killed leaves none."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from mnist_dist.errors import InputError, RunError
from mnist_dist.files.durable import (
    FILE_ERRORS,
    describe_error,
    is_local,
    publishing,
    remove_unfinished,
)


def prepare_directory(directory: str) -> None:
    """Creates a directory to export to, and removes what killed exports left in it.

    Raises:
      InputError: it is a file, or cannot be written to.
    """
    try:
        tf.io.gfile.makedirs(directory)
        is_writable = not is_local(directory) or os.access(directory, os.W_OK)
    except FILE_ERRORS as error:
        raise InputError(
            f"--export_dir: found {directory!r}, where no directory can be made: "
            f"{describe_error(error)}"
        ) from error
    if not is_writable:
        raise InputError(
            f"--export_dir: found {directory!r}, expected a directory to write to"
        )
    remove_unfinished(directory, is_mine=False)


@contextlib.contextmanager
def exporting(path: str, *, overwrite: bool) -> Iterator[str]:
    """Yields a path to export to; at the end of the block the export is at `path`.

    Raises:
      InputError: another process was first, and `overwrite` is not set.
      RunError: TensorFlow or the operating system could not write it.
    """
    try:
        with publishing(path, overwrite=overwrite) as staging:
            yield staging
    except FILE_ERRORS as error:
        if not overwrite and tf.io.gfile.exists(path):
            raise InputError(
                f"{path}: appeared while it was being exported; nothing was replaced"
            ) from error
        raise RunError(
            f"{path} cannot be written: {describe_error(error)}; nothing was published"
        ) from error
