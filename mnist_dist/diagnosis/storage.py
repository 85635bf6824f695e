"""The directory of a run: can it be written, locked and relied on."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time

from mnist_dist.diagnosis.diagnosis import Diagnosis
from mnist_dist.errors import InputError
from mnist_dist.files.local import is_local
from mnist_dist.run.directory import check_directory

_MIN_FREE = 256 << 20  # bytes; a run of the cnn with its checkpoints takes some tens
_SLOW_FSYNC = 0.5  # seconds for a megabyte
_MIB = 1 << 20


def check_storage(diagnosis: Diagnosis, model_dir: str) -> None:
    """Tries the folder in which a run is to lie; nothing stays there.

    Args:
      diagnosis: to add to.
      model_dir: of the run, which need not be there: then the folder above it.
    """
    if not is_local(model_dir):
        diagnosis.facts["model_dir"] = f"{model_dir}: not of this host, not tried"
        return
    try:
        check_directory(model_dir, flag="--model_dir")
    except InputError as error:
        diagnosis.facts["model_dir"] = "cannot be written"
        diagnosis.stops.append(str(error))
        return
    existing = os.path.abspath(model_dir)
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing) as folder:
            seconds = _time_fsync(os.path.join(folder, "file"))
            locks = _describe_locks(os.path.join(folder, "file"))
    except OSError as error:
        diagnosis.facts["model_dir"] = f"{existing}: {error.strerror}"
        diagnosis.stops.append(
            f"--model_dir: {existing} cannot be written to: {error.strerror}"
        )
        return
    free = shutil.disk_usage(existing).free
    diagnosis.facts["model_dir"] = (
        f"{existing}: {free / _MIB:,.0f} MiB free, fsync of a megabyte "
        f"{1000 * seconds:.1f} ms, locks {locks}"
    )
    diagnosis.numbers |= {"free_disk_bytes": free, "fsync_seconds": seconds}
    if locks != "work":
        diagnosis.facts["locks"] = "see that no other run writes to this directory"
    if free < _MIN_FREE:
        diagnosis.stops.append(
            f"--model_dir: {free / _MIB:,.0f} MiB are free in {existing}, expected "
            f"{_MIN_FREE // _MIB}"
        )
    if seconds > _SLOW_FSYNC:
        diagnosis.slows.append(
            f"--model_dir: an fsync in {existing} takes {seconds:.1f} s: checkpoints "
            "may wait for each other"
        )


def _time_fsync(path: str) -> float:
    began = time.perf_counter()
    with open(path, "wb") as file:
        file.write(os.urandom(_MIB))
        file.flush()
        os.fsync(file.fileno())
    os.replace(path, f"{path}.renamed")
    os.replace(f"{path}.renamed", path)
    return time.perf_counter() - began


def _describe_locks(path: str) -> str:
    with open(path, "rb") as first, open(path, "rb") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"are not there ({error.strerror})"
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "keep nobody out"
    return "work"
