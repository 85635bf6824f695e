"""MODEL_DIR: what lies where."""

import os
import re

from mnist_dist.errors import InputError, RunError
from mnist_dist.files.durable import (
    FILE_ERRORS,
    describe_error,
    list_names,
    remove,
    reporting_errors,
)
from mnist_dist.files.local import check_readable, is_local, kind_at
from mnist_dist.run.checkpoints import list_checkpoints
from mnist_dist.run.paths import LOCK, checkpoint_dirs

# What a run writes, the settings last.
_FOLDERS = ("checkpoints", "best", "train", "eval", "eval_watch", "export")
_FILES = ("metrics.jsonl", "config.flags", "config.json")


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
    check_readable(directory)


def check_own(model_dir: str) -> None:
    """Checks that what has the names of a run's files may be written.

    Raises:
      InputError: one is a link, whose target is outside of the run, or a file where a
        run has a folder, or the reverse.
    """
    for names, expected in ((_FOLDERS, "a folder"), ((*_FILES, LOCK), "a file")):
        for name in names:
            path = os.path.join(model_dir, name)
            found = kind_at(path)
            if found not in ("", expected):
                raise InputError(
                    f"--model_dir: found {found} at {path}, expected {expected} or "
                    "nothing there"
                )


def check_contents(model_dir: str) -> None:
    """Checks that what has the names of a run's files is a run's.

    A run goes on writing to these, drops later points from them, and may be told to
    delete them all.

    Raises:
      InputError: as `check_own`; or there are some but no sign of a run: no metrics,
        settings or checkpoint.
    """
    check_own(model_dir)
    paths = [os.path.join(model_dir, name) for name in _FOLDERS + _FILES]
    found = [p for p in paths if kind_at(p) == "a file" or list_names(p)]
    has_records = any(path.endswith(_FILES) for path in found)
    if (
        found
        and not has_records
        and not any(map(list_checkpoints, checkpoint_dirs(model_dir)))
    ):
        raise InputError(
            f"--model_dir: found {', '.join(found)}, but no metrics, settings or "
            "checkpoint of a run; expected a run, or a directory without these names"
        )


def delete_run(model_dir: str) -> None:
    """Deletes all that a run has written; of links the links alone.

    Raises:
      RunError: something cannot be deleted.
    """
    for name in _FOLDERS + _FILES:
        path = os.path.join(model_dir, name)
        try:
            remove(path)
        except FILE_ERRORS as error:
            raise RunError(
                f"{path} cannot be deleted: {describe_error(error)}"
            ) from error


def list_versions(directory: str) -> list[int]:
    """Returns the version numbers taken in a directory of SavedModels, highest first.

    Anything named by a number takes it: a version, but also a file, or a folder of
    something else, which no version may replace.
    """
    return [int(name) for name in _list_numbers(directory)]


def list_version_paths(directory: str) -> list[str]:
    """Returns the paths of the versions in a directory of SavedModels, newest first.

    A version is a SavedModel in a folder named by a number. As for TensorFlow Serving,
    the highest number is the newest version.
    """
    paths = [os.path.join(directory, name) for name in _list_numbers(directory)]
    return [path for path in paths if "saved_model.pb" in list_names(path)]


def _list_numbers(directory: str) -> list[str]:
    names = [n for n in list_names(directory) if n.isascii() and n.isdigit()]
    return sorted(names, key=int, reverse=True)


def list_evaluations(directory: str) -> set[int]:
    """Returns the steps of which a directory has a record of `evaluate --watch`."""
    found = [re.fullmatch(r"ckpt-(\d+)\.json", name) for name in list_names(directory)]
    return {int(match[1]) for match in found if match}


def remove_evaluations(directory: str, *, first_step: int) -> None:
    """Removes what `evaluate --watch` wrote of a step and of all later ones.

    Raises:
      RunError: something cannot be removed.
    """
    for name in list_names(directory):
        match = re.fullmatch(r"ckpt-(\d+)\.json|events\.out\.tfevents\.(\d+)\.v2", name)
        if match and int(match[1] or match[2]) >= first_step:
            path = os.path.join(directory, name)
            with reporting_errors(
                path, so="evaluations of later steps are still there"
            ):
                remove(path)
