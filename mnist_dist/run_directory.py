"""MODEL_DIR: what lies where, who may write to it, and how it came about.

`config.json` records the settings of a run; one that goes on must have the same.
"""

import contextlib
import fcntl
import io
import json
import os
import platform
import socket
from collections.abc import Mapping
from typing import BinaryIO

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import mnist_dist
from mnist_dist.checkpoints import list_checkpoints
from mnist_dist.durable_files import (
    FILE_ERRORS,
    is_local,
    naming,
    reason,
    remove,
    replacing,
)
from mnist_dist.errors import InputError, RunError
from mnist_dist.workers.cluster import LAUNCH

# What a run writes, the settings last.
_CONTENTS = (
    "checkpoints",
    "best",
    "metrics.jsonl",
    "train",
    "eval",
    "eval_watch",
    "export",
    "config.json",
)


def open_for_writing(model_dir: str) -> BinaryIO:
    """Creates the directory of a run, and makes this process its only writer.

    The operating system holds the lock, so a dead process's is gone. Where it has none
    to give, for a path with a scheme or on some network disks, a warning says so.

    Returns:
      The lock, to be kept: it ends when this file is closed.

    Raises:
      InputError: there is a file, the directory cannot be written to, or another
        process writes to it.
    """
    try:
        tf.io.gfile.makedirs(model_dir)
        if not is_local(model_dir):
            _warn_of_no_lock(model_dir, "it is not on this host")
            return io.BytesIO()
        lock = open(os.path.join(model_dir, ".lock"), "ab+", buffering=0)  # noqa: SIM115
    except (*FILE_ERRORS, UnicodeError) as error:
        raise InputError(
            f"--model_dir: found {model_dir!r}, expected a directory to write to: "
            f"{reason(error)}"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().decode(errors="replace").strip() or "another process"
        lock.close()
        raise InputError(
            f"--model_dir: {model_dir} is being written by {holder}, expected a run "
            "that nobody writes"
        ) from error
    except OSError as error:
        _warn_of_no_lock(model_dir, reason(error))
    with contextlib.suppress(OSError):  # a full disk; it only tells others who we are
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return lock


def check_directory(directory: str, *, flag: str) -> None:
    """Checks that a directory can be written to later, and leaves no trace.

    Raises:
      InputError: it, or the first folder above it that there is, is not to write to.
    """
    if not is_local(directory):  # to be seen when it is written to
        return
    existing = os.path.abspath(directory)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        raise InputError(
            f"{flag}: found {directory!r}, expected a directory to write to"
        )


def _warn_of_no_lock(model_dir: str, why: str) -> None:
    logging.warning(
        "%s cannot be locked (%s): see that no other run writes to it", model_dir, why
    )


def delete_run(model_dir: str) -> None:
    """Deletes all that a run has written; of links the links alone.

    Raises:
      RunError: something cannot be deleted.
    """
    for name in _CONTENTS:
        path = os.path.join(model_dir, name)
        try:
            remove(path)
        except FILE_ERRORS as error:
            raise RunError(f"{path} cannot be deleted: {reason(error)}") from error


def check_settings(model_dir: str, settings: Mapping[str, object]) -> None:
    """Compares a run's recorded settings with those it is to go on with.

    A run without a checkpoint has nothing to go on from, so nothing can differ.

    Args:
      model_dir: of the run.
      settings: what shapes the results, by flag; and `data_checksum`.

    Raises:
      InputError: names each difference; or `config.json` cannot be read.
    """
    if not any(list_checkpoints(d) for d in checkpoint_dirs(model_dir)):
        return
    config = load_config(model_dir)
    if config is None:
        logging.warning("%s has no config.json to compare settings with", model_dir)
        return
    recorded = config["settings"]
    wanted = json.loads(json.dumps(dict(settings)))
    differences = [
        "--data_dir: found another data set than the run's"
        if name == "data_checksum"
        else f"--{name}: found {value!r}, the run has {recorded[name]!r}"
        for name, value in wanted.items()
        if name in recorded and recorded[name] != value
    ]
    if differences:
        raise InputError(
            f"{'; '.join(differences)}; expected the settings of the run in "
            f"{model_dir}, another --model_dir, or --override_config"
        )


def is_restart(model_dir: str) -> bool:
    """Whether what starts this process, by `LAUNCH`, has started the run before."""
    launch = os.environ.get(LAUNCH)
    if not launch:
        return False
    try:
        config = load_config(model_dir) or {}
    except InputError:
        return False
    resolved = config.get("resolved")
    return isinstance(resolved, dict) and resolved.get(LAUNCH) == launch


def load_config(model_dir: str) -> dict | None:
    """Reads `config.json`; None where there is none.

    Raises:
      InputError: it is not what `save_config` wrote.
    """
    path = os.path.join(model_dir, "config.json")
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            config = json.loads(file.read())
        if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
            raise ValueError("it has no object 'settings'")
        return config
    except (tf.errors.OpError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected the settings of a run, as JSON: {reason(error)}"
        ) from error


def checkpoint_dir(model_dir: str) -> str:
    """Returns where the newest checkpoints lie."""
    return os.path.join(model_dir, "checkpoints")


def best_dir(model_dir: str) -> str:
    """Returns where the best checkpoint so far lies."""
    return os.path.join(model_dir, "best")


def checkpoint_dirs(model_dir: str) -> list[str]:
    """Returns where all checkpoints lie that a run can go on from."""
    return [checkpoint_dir(model_dir), best_dir(model_dir)]


def export_dir(model_dir: str) -> str:
    """Returns where SavedModels lie by default."""
    return os.path.join(model_dir, "export")


def save_config(
    model_dir: str,
    *,
    settings: Mapping[str, object],
    flags: Mapping[str, object],
    resolved: Mapping[str, object],
) -> None:
    """Writes `config.json`.

    Args:
      model_dir: of the run.
      settings: what must not change when the run goes on.
      flags: every flag's value.
      resolved: what came of them.
    """
    config = {
        "settings": dict(settings),
        "flags": dict(flags),
        "resolved": dict(resolved),
        "versions": {
            "mnist_dist": mnist_dist.__version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
    }
    path = os.path.join(model_dir, "config.json")
    with naming(path, so="the checkpoints so far are intact"), replacing(path) as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")
