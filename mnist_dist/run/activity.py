"""Whether a process writes to a run just now; needs no TensorFlow to find out."""

import fcntl
import os

from mnist_dist.files.local import is_local, kind_at
from mnist_dist.run.paths import LOCK


def is_being_written(model_dir: str) -> bool:
    """Whether a process holds the lock of a run; False where there are no locks."""
    path = os.path.join(model_dir, LOCK)
    if not is_local(model_dir) or kind_at(path) != "a file":
        return False
    try:
        with open(path, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody has written yet; or none can be locked here
        pass
    return False
