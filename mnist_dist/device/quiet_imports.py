"""TensorFlow is imported without the lines that its C++ code prints then."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from mnist_dist.device.environment import check_threads, explain_import_error
from mnist_dist.errors import InputError


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Keeps what TensorFlow's C++ prints on import from standard error.

    Its log level is set to errors of C++ alone, unless `TF_CPP_MIN_LOG_LEVEL` says
    otherwise; but no setting silences what it prints before its logging starts. If the
    import fails, all that was printed is shown. Where there is no place to keep it, it
    is shown anyhow.

    Raises:
      InputError: something in the user's environment keeps TensorFlow from working.
    """
    check_threads()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        said = _open_scratch()
    except OSError:
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except Exception as error:
            if explanation := explain_import_error(error):
                raise InputError(explanation) from error
            said.seek(0)
            os.write(stderr, said.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _open_scratch() -> IO[bytes]:
    """Opens a file that nobody else sees: in memory if the system has such."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()
