"""Checkpoints: named arrays <-> files in the format of tf.train.Checkpoint.

Nothing here knows a strategy or a model: any reader (`tf.train.load_checkpoint`, another
replica count, NumPy) finds the arrays by name.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mnist_dist.files.arrays import Arrays
from mnist_dist.files.durable import (
    list_names,
    list_unfinished,
    remove,
    replacing,
    reporting_errors,
    staging_folder,
    sync,
)
from mnist_dist.files.local import is_local, kind_at, plain_folder
from mnist_dist.run.move_marker import find_marker_among
from mnist_dist.run.object_graph import SUFFIX, create_object_graph

# How tf.train.Checkpoint names its description of the objects.
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
NAME = r"ckpt-(0|[1-9][0-9]*)"
_GOING = ".removing:ckpt-"  # and a step: the index of a checkpoint that is removed
# What reading a damaged checkpoint raises, depending on where the damage is.
DAMAGE = (tf.errors.OpError, IndexError, ValueError)


def checkpoint_prefix(directory: str, step: int) -> str:
    """Returns the path of a step's checkpoint, as TensorFlow takes it."""
    return os.path.join(directory, f"ckpt-{step}")


def list_checkpoints(directory: str) -> list[int]:
    """Returns the steps of which `directory` has a checkpoint, newest first.

    One that lacks its index counts as a damaged one, unless a writer is just about to
    publish the index.
    """
    names = list_names(directory)
    matches = [match for name in names if (match := _match(name))]
    steps = {int(match[1]) for match in matches}
    indexed = {int(match[1]) for match in matches if match[2] == "index"}
    if steps != indexed:
        steps -= (_staged_indices(directory).keys() | _list_going(names)) - indexed
    if marker := find_marker_among(names):
        steps = {step for step in steps if step <= marker.step}
    return sorted(steps, reverse=True)


def list_later(directory: str, step: int) -> dict[int, list[str]]:
    """Returns the names of all files of checkpoints past a step, the index first.

    The index comes first for whoever moves them: without it the other files are not
    taken for a checkpoint.
    """
    found: dict[int, list[str]] = {}
    for name in reversed(list_names(directory)):
        match = _match(name)
        if match and int(match[1]) > step:
            found.setdefault(int(match[1]), []).append(name)
    return found


def _match(name: str) -> re.Match[str] | None:
    return re.fullmatch(NAME + r"\.(index|data-.*)", name)


def finish_interrupted_saves(directory: str) -> None:
    """Completes what a killed writer has begun: a save, or the removal of an old one.

    Only for who alone writes to `directory`.

    Raises:
      tf.errors.OpError, OSError: an index cannot be renamed, or a file removed.
    """
    for step, index in _staged_indices(directory).items():
        final = f"{checkpoint_prefix(directory, step)}.index"
        tf.io.gfile.rename(index, final, overwrite=True)
        sync(directory)
    for step in _list_going(list_names(directory)):
        if not tf.io.gfile.exists(f"{checkpoint_prefix(directory, step)}.index"):
            delete_checkpoint(directory, step)
        remove(os.path.join(directory, f"{_GOING}{step}"))


def _list_going(names: Iterable[str]) -> set[int]:
    """Returns the steps of checkpoints whose removal has begun."""
    found = [re.fullmatch(re.escape(_GOING) + r"(\d+)", name) for name in names]
    return {int(match[1]) for match in found if match}


def _staged_indices(directory: str) -> dict[int, str]:
    """Paths of indices still in a writer's folder whose data has left it, by step."""
    found = {}
    for staging in list_unfinished(directory):
        names = list_names(staging)
        for name in names:
            match = re.fullmatch(NAME + r"\.index", name)
            if match and not any(n.startswith(f"ckpt-{match[1]}.data-") for n in names):
                found[int(match[1])] = os.path.join(staging, name)
    return found


@contextlib.contextmanager
def open_checkpoint(prefix: str) -> Iterator[Any]:
    """Gives TensorFlow's reader of a checkpoint: `tf.train.CheckpointReader`.

    Raises:
      tf.errors.OpError, IndexError, ValueError: one of `DAMAGE`: it is damaged, or a
        file of it is a named pipe or a device, which would be waited for for ever.
    """
    directory, name = os.path.split(prefix)
    for file_name in list_names(directory or "."):
        if file_name.startswith(f"{name}."):
            kind = kind_at(os.path.join(directory, file_name), follow_links=True)
            if kind not in ("", "a file"):
                raise ValueError(f"{file_name} is {kind}")
    with plain_folder(directory) as folder:
        # Not tf.train.load_checkpoint: it prefers a folder of this name, and its state
        # file.
        yield tf.compat.v1.train.NewCheckpointReader(os.path.join(folder, name))


def load_arrays(prefix: str) -> Arrays:
    """Reads every array of a checkpoint, so that damage anywhere is found.

    Raises:
      tf.errors.OpError, IndexError, ValueError: one of `DAMAGE`: it is damaged.
    """
    with open_checkpoint(prefix) as reader:
        # The graph of objects too, which lies at the end: a truncated file lacks it.
        everything = {
            name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
        }
    return {
        name.removesuffix(SUFFIX): np.asarray(value)
        for name, value in everything.items()
        if name.endswith(SUFFIX)
    }


def load_graph(prefix: str) -> bytes | None:
    """Returns the graph of objects of a checkpoint; None where it cannot be read.

    Nothing of ours depends on it.
    """
    with contextlib.suppress(*DAMAGE), open_checkpoint(prefix) as reader:
        return bytes(reader.get_tensor(OBJECT_GRAPH))
    return None


def read_step(directory: str, step: int) -> Arrays:
    """Reads one step's checkpoint, whatever model it is of.

    Raises:
      ValueError, tf.errors.OpError, IndexError: one of `DAMAGE`: it is damaged, or a
        link to somewhere outside `directory`.
    """
    inside = os.path.realpath(directory)
    paths = [os.path.join(directory, name) for name in _files(directory, step)]
    # After a kill between the two files of a save over an older checkpoint, the index
    # that belongs to the data is still in the writer's folder.
    staged = _staged_indices(directory).get(step) if is_local(directory) else None
    if staged:
        paths = [path for path in paths if not path.endswith(".index")] + [staged]
    for path in paths:
        folder = os.path.dirname(os.path.realpath(path))
        if inside not in (folder, os.path.dirname(folder) if path == staged else None):
            raise ValueError(f"{os.path.basename(path)} is a link to outside the run")
    if not staged:
        return load_arrays(checkpoint_prefix(directory, step))
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            link = os.path.join(folder, os.path.basename(path))
            os.symlink(os.path.abspath(path), link)
        return load_arrays(checkpoint_prefix(folder, step))


def stat_step(directory: str, step: int) -> tuple[float, int]:
    """Returns when a step's files were written, in seconds since 1970, and their bytes.

    Files that the run removes meanwhile do not count.
    """
    stats = []
    for name in _files(directory, step):
        with contextlib.suppress(tf.errors.NotFoundError):
            stats.append(tf.io.gfile.stat(os.path.join(directory, name)))
    times = [stat.mtime_nsec / 1e9 for stat in stats]
    return max(times, default=0.0), sum(stat.length for stat in stats)


def save_checkpoint(
    arrays: Arrays,
    *,
    directory: str,
    step: int,
    max_to_keep: int | None = None,
    graph: bytes | None = None,
    first: Callable[[], None] | None = None,
) -> str:
    """Writes `directory/ckpt-<step>`; returns its path when it is on disk.

    Args:
      arrays: what to write, by name.
      directory: holds the checkpoints; made if it is not there, but not its parents.
      step: updates done, which names the checkpoint.
      max_to_keep: how many of the newest checkpoints stay; None: all.
      graph: of objects, for `tf.train.Checkpoint`; None: that of nested dictionaries.
      first: called before anything is written.

    Raises:
      RunError: it cannot be written.
    """
    if first:
        first()
    prefix = checkpoint_prefix(directory, step)
    with reporting_errors(prefix, so="the ones before it are intact"):
        if not tf.io.gfile.isdir(directory):
            # A run that was deleted meanwhile must not come back.
            make = tf.io.gfile.mkdir if is_local(directory) else tf.io.gfile.makedirs
            make(directory)
        graph = graph or create_object_graph(arrays, {})
        _write(arrays, graph, directory=directory, step=step)
        # For `tf.train.latest_checkpoint`, which must not find what is deleted next;
        # nothing of ours reads it.
        with replacing(os.path.join(directory, "checkpoint")) as file:
            file.write(f'model_checkpoint_path: "ckpt-{step}"\n'.encode())
        if max_to_keep is not None:
            for old in list_checkpoints(directory)[max_to_keep:]:
                delete_checkpoint(directory, old)
    return prefix


def _write(arrays: Arrays, graph: bytes, *, directory: str, step: int) -> None:
    with staging_folder(directory) as staging:
        # As tf.train.Checkpoint does, but for a quarter of the processor time.
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=checkpoint_prefix(staging, step),
                tensor_names=[*(name + SUFFIX for name in arrays), OBJECT_GRAPH],
                shape_and_slices=[""] * (len(arrays) + 1),
                tensors=[*arrays.values(), graph],
            )
        names = _files(staging, step)
        for name in names:
            sync(os.path.join(staging, name))
        # The index last: `finish_interrupted_saves` knows by it how far a kill let it.
        for name in names:
            tf.io.gfile.rename(
                os.path.join(staging, name),
                os.path.join(directory, name),
                overwrite=True,
            )
        sync(directory)


def delete_checkpoint(directory: str, step: int) -> None:
    """Removes a step's files.

    The index is renamed first: by its new name `finish_interrupted_saves` knows after a
    kill that the other files must be removed too. A rename needs no space on a full
    disk.
    """
    index = f"{checkpoint_prefix(directory, step)}.index"
    going = os.path.join(directory, f"{_GOING}{step}")
    if tf.io.gfile.exists(index):
        tf.io.gfile.rename(index, going, overwrite=True)
    for name in _files(directory, step):
        remove(os.path.join(directory, name))
    remove(going)


def _files(directory: str, step: int) -> list[str]:
    """Names of a checkpoint's files, the index last."""
    names = list_names(directory)
    return [name for name in names if name.startswith(f"ckpt-{step}.")]
