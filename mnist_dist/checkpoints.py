"""Checkpoints: named arrays <-> files in the format of tf.train.Checkpoint.

Nothing here knows a strategy or a model. A save takes arrays already copied to the
host, so a thread of its own writes them while training goes on, and any reader
(`tf.train.load_checkpoint`, another replica count, NumPy) finds them by name.
"""

import concurrent.futures
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from mnist_dist.durable_files import (
    FILE_ERRORS,
    describe_error,
    list_names,
    list_unfinished,
    remove,
    replacing,
    reporting_errors,
    staging_path,
    sync,
)
from mnist_dist.errors import InputError

Arrays = dict[str, np.ndarray]
Specs = Mapping[str, tuple[tuple[int, ...], np.dtype]]

# How tf.train.Checkpoint names a variable's value, and its description of the objects.
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_NAME = r"ckpt-(0|[1-9][0-9]*)"
_TRIES = 5  # at a listing that a running training changes while it is read
# What reading a damaged checkpoint raises, depending on where the damage is.
DAMAGE = (tf.errors.OpError, IndexError, ValueError)


class CheckpointWriter:
    """Writes checkpoints one after the other in the background."""

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending: list[concurrent.futures.Future[None]] = []

    def save(
        self,
        arrays: Arrays,
        *,
        directory: str,
        step: int,
        max_to_keep: int,
        first: Callable[[], None] | None = None,
    ) -> None:
        """Begins to write `directory/ckpt-<step>`; older ones past the limit go.

        Waits while two are being written.

        Args:
          arrays: what to write, by name; not to be changed any more.
          directory: of checkpoints.
          step: number of this one.
          max_to_keep: checkpoints that stay in the directory.
          first: called in the background before anything is written.

        Raises:
          RunError: an earlier one could not be written.
        """
        self.raise_failure()
        self._wait_until(num_pending=1)
        self._pending.append(
            self._thread.submit(
                save_checkpoint,
                arrays,
                directory=directory,
                step=step,
                max_to_keep=max_to_keep,
                first=first,
            )
        )

    def raise_failure(self) -> None:
        """Raises the `RunError` of a save that has failed meanwhile, if one has."""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def close(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          RunError: it could not be written.
        """
        try:
            self._wait_until(num_pending=0)
        finally:
            self._thread.shutdown()

    def _wait_until(self, *, num_pending: int) -> None:
        while len(self._pending) > num_pending:
            self._pending.pop(0).result()


def checkpoint_prefix(directory: str, step: int) -> str:
    """Returns the path of a step's checkpoint, as TensorFlow takes it."""
    return os.path.join(directory, f"ckpt-{step}")


def list_checkpoints(directory: str) -> list[int]:
    """Returns the steps of which `directory` has a checkpoint, newest first.

    One that lacks its index counts, as damaged, unless that is just about to come.
    """
    names = [
        re.fullmatch(_NAME + r"\.(index|data-.*)", name)
        for name in list_names(directory)
    ]
    steps = {int(name[1]) for name in names if name}
    indexed = {int(name[1]) for name in names if name and name[2] == "index"}
    if steps != indexed:
        steps -= _staged_indices(directory).keys() - indexed
    return sorted(steps, reverse=True)


def finish_interrupted_saves(directory: str) -> None:
    """Completes checkpoints whose writer was killed between the data and the index.

    Only for who alone writes to `directory`.

    Raises:
      tf.errors.OpError, OSError: an index cannot be renamed.
    """
    for step, index in _staged_indices(directory).items():
        final = f"{checkpoint_prefix(directory, step)}.index"
        tf.io.gfile.rename(index, final, overwrite=True)
        sync(directory)


def _staged_indices(directory: str) -> dict[int, str]:
    """Paths of indices still in a writer's folder whose data has left it, by step."""
    found = {}
    for staging in list_unfinished(directory):
        names = list_names(staging)
        for name in names:
            match = re.fullmatch(_NAME + r"\.index", name)
            if match and not any(n.startswith(f"ckpt-{match[1]}.data-") for n in names):
                found[int(match[1])] = os.path.join(staging, name)
    return found


def load_arrays(prefix: str) -> Arrays:
    """Reads every array of a checkpoint, so that damage anywhere is found.

    Raises:
      tf.errors.OpError, IndexError, ValueError: one of `DAMAGE`: it is damaged.
    """
    # Not tf.train.load_checkpoint: it prefers a folder of this name, and its state file.
    reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    # The graph of objects too, which lies at the end: a truncated file lacks it.
    everything = {
        name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
    }
    return {
        name.removesuffix(SUFFIX): np.asarray(value)
        for name, value in everything.items()
        if name.endswith(SUFFIX)
    }


def load_newest(directories: Sequence[str], *, specs: Specs) -> Arrays | None:
    """Loads the newest checkpoint that is whole, or None where there is none.

    Args:
      directories: as `read_newest` takes them.
      specs: shape and dtype that the run needs, by name.

    Raises:
      InputError: there are checkpoints but none is whole, or the newest whole one
        is of another model or optimizer.
    """
    found = read_newest(directories)
    if found is None:
        return None
    prefix, arrays = found
    check_specs(arrays, specs=specs, name=prefix)
    return arrays


def read_newest(directories: Sequence[str]) -> tuple[str, Arrays] | None:
    """Reads the newest checkpoint that is whole, whatever model it is of.

    A warning names each newer one that is damaged. A training that goes on may replace
    them all while they are read: then it looks again.

    Args:
      directories: where `ckpt-<step>` files lie; state files are not consulted. Of
        the same step the first directory's is taken.

    Returns:
      The checkpoint's path, as TensorFlow takes it, and everything in it; None where
      there is no checkpoint.

    Raises:
      InputError: there are checkpoints but none is whole.
    """
    for _ in range(_TRIES):
        candidates = _newest_first(directories)
        damage = []
        for step, directory in candidates:
            prefix = checkpoint_prefix(directory, step)
            try:
                arrays = read_step(directory, step)
            except DAMAGE as error:
                damage.append(
                    f"{prefix}: {type(error).__name__}: {describe_error(error)}"
                )
                continue
            for text in damage:
                logging.warning("a checkpoint is damaged and skipped: %s", text)
            return prefix, arrays
        if candidates == _newest_first(directories):
            break
    if not candidates:
        return None
    raise InputError(
        f"{directories[0]}: all {len(candidates)} checkpoints are damaged; nothing was "
        f"overwritten: {'; '.join(damage)}"
    )


def _newest_first(directories: Sequence[str]) -> list[tuple[int, str]]:
    candidates = [(step, d) for d in directories for step in list_checkpoints(d)]
    return sorted(candidates, key=lambda candidate: candidate[0], reverse=True)


def load_restored(
    directories: Sequence[str], *, restore: str, specs: Specs
) -> Arrays | None:
    """Loads what a run is to go on from, or None for its first step.

    Args:
      directories: of the run's checkpoints, as `load_newest` takes them.
      restore: `auto` (the newest), `none`, a step, or the path of a checkpoint.
      specs: as `load_newest` takes it.

    Raises:
      InputError: nothing to restore is whole, `none` where checkpoints are, or a
        checkpoint of another run where this one has its own.
    """
    if restore == "auto":
        return load_newest(directories, specs=specs)
    listed = _list_steps(directories)
    if restore == "none":
        if listed:
            raise InputError(
                f"--restore=none: found checkpoints in {directories[0]} (steps "
                f"{listed}), expected none; --overwrite deletes them"
            )
        return None
    if restore.isascii() and restore.isdigit():
        prefix, arrays = read_named_step(
            directories, restore, flag="--restore", words="auto, none"
        )
    else:
        directory, step = parse_prefix(restore, flag="--restore")
        own = {os.path.realpath(d) for d in directories}
        if listed and os.path.realpath(directory) not in own:
            raise InputError(
                f"--restore: found {restore}, a checkpoint of another run, but "
                f"{directories[0]} has its own (steps {listed}); expected one of these"
            )
        prefix, arrays = read_named_step(
            [directory], str(step), flag="--restore", words="auto, none"
        )
    check_specs(arrays, specs=specs, name=prefix)
    return arrays


def read_named_step(
    directories: Sequence[str], step: str, *, flag: str, words: str
) -> tuple[str, Arrays]:
    """Reads the checkpoint of the step that a flag names.

    Args:
      directories: where `ckpt-<step>` files lie; the first with a whole one counts.
      step: as it was given.
      flag: that names it.
      words: what else it takes, for the error.

    Returns:
      As `read_newest` does.

    Raises:
      InputError: there is none of this step, or none that is whole.
    """
    damage = ""
    for directory in directories:
        if step in map(str, list_checkpoints(directory)):
            prefix = checkpoint_prefix(directory, int(step))
            try:
                return prefix, read_step(directory, int(step))
            except DAMAGE as error:
                damage = f"{prefix} is damaged: {describe_error(error)}"
    if damage:
        raise InputError(f"{flag}: {damage}")
    raise InputError(
        f"{flag}: found {step}, expected {words} or one of the steps in "
        f"{directories[0]}: {_list_steps(directories) or 'none'}"
    )


def _list_steps(directories: Sequence[str]) -> str:
    steps = {step for directory in directories for step in list_checkpoints(directory)}
    return ", ".join(map(str, sorted(steps, reverse=True)))


def parse_prefix(path: str, *, flag: str) -> tuple[str, int]:
    """Splits the path of a checkpoint, as in `RUN/best/ckpt-100`, or of its index.

    Returns:
      The directory and the step.

    Raises:
      InputError: no checkpoint has this path.
    """
    directory, name = os.path.split(path.removesuffix(".index"))
    match = re.fullmatch(_NAME, name)
    directory = directory or "."
    if not match or int(match[1]) not in list_checkpoints(directory):
        raise InputError(
            f"{flag}: found {path!r}, expected the path of a checkpoint, as in "
            "RUN/checkpoints/ckpt-100"
        )
    return directory, int(match[1])


def set_aside_later(directory: str, step: int) -> None:
    """Moves checkpoints past a step to a new folder `directory/later-than-<step>`.

    A run that goes on from `step` must neither count them nor resume from them.
    """
    later = [s for s in list_checkpoints(directory) if s > step]
    if not later:
        return
    aside, number = os.path.join(directory, f"later-than-{step}"), 2
    while tf.io.gfile.exists(aside):
        aside, number = (
            os.path.join(directory, f"later-than-{step}.{number}"),
            number + 1,
        )
    tf.io.gfile.makedirs(aside)
    for old in later:
        # The index first: without it the rest is not taken for a checkpoint.
        for name in reversed(_files(directory, old)):
            tf.io.gfile.rename(os.path.join(directory, name), os.path.join(aside, name))


def read_step(directory: str, step: int) -> Arrays:
    """Reads one step's checkpoint, whatever model it is of.

    Raises:
      ValueError, tf.errors.OpError, IndexError: one of `DAMAGE`: it is damaged, or a
        link to somewhere outside `directory`.
    """
    inside = os.path.realpath(directory)
    for name in _files(directory, step):
        if os.path.dirname(os.path.realpath(os.path.join(directory, name))) != inside:
            raise ValueError(f"{name} is a link to outside the directory")
    return load_arrays(checkpoint_prefix(directory, step))


def stat_step(directory: str, step: int) -> tuple[float, int]:
    """Returns when a step's files were written, in seconds since 1970, and their bytes.

    Those that go meanwhile do not count.
    """
    stats = []
    for name in _files(directory, step):
        with contextlib.suppress(tf.errors.NotFoundError):
            stats.append(tf.io.gfile.stat(os.path.join(directory, name)))
    times = [stat.mtime_nsec / 1e9 for stat in stats]
    return max(times, default=0.0), sum(stat.length for stat in stats)


def check_specs(arrays: Arrays, *, specs: Specs, name: str) -> None:
    """Compares names, shapes and dtypes with what is needed.

    Raises:
      InputError: names each that is missing, extra or of another shape or dtype.
    """
    if misfit := describe_misfit(arrays, specs):
        raise InputError(f"{name} is of another model or optimizer: {misfit}")


def specs_of(arrays: Arrays) -> Specs:
    """Returns the shape and dtype of each array."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def describe_misfit(arrays: Arrays, specs: Specs) -> str:
    """Says how arrays differ from what is expected; empty if they do not."""
    reasons = [
        f"{name}: found nothing, expected {describe_spec(*specs[name])}"
        for name in sorted(specs.keys() - arrays.keys())
    ]
    reasons += [
        f"{name}: found {describe_spec(arrays[name].shape, arrays[name].dtype)}, "
        f"expected {describe_spec(*specs[name]) if name in specs else 'no such array'}"
        for name in sorted(arrays)
        if (arrays[name].shape, arrays[name].dtype) != specs.get(name)
    ]
    return "; ".join(reasons)


def describe_spec(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Returns what an array is, for a person: `float32 [784, 128]`."""
    return f"{dtype} {list(shape)}"


def save_checkpoint(
    arrays: Arrays,
    *,
    directory: str,
    step: int,
    max_to_keep: int | None = None,
    first: Callable[[], None] | None = None,
) -> None:
    """Writes `directory/ckpt-<step>`; returns when it is on disk.

    Args:
      arrays: what to write, by name.
      directory: of checkpoints.
      step: number of this one.
      max_to_keep: checkpoints that stay in the directory; None: all.
      first: called before anything is written.

    Raises:
      RunError: it cannot be written.
    """
    if first:
        first()
    prefix = checkpoint_prefix(directory, step)
    with reporting_errors(prefix, so="the ones before it are intact"):
        _write(arrays, directory=directory, step=step)
        # For `tf.train.latest_checkpoint`, which must not find what is deleted next;
        # nothing of ours reads it.
        with replacing(os.path.join(directory, "checkpoint")) as file:
            file.write(f'model_checkpoint_path: "ckpt-{step}"\n'.encode())
        if max_to_keep is not None:
            for old in list_checkpoints(directory)[max_to_keep:]:
                delete_checkpoint(directory, old)


def _write(arrays: Arrays, *, directory: str, step: int) -> None:
    staging = staging_path(directory)
    tf.io.gfile.makedirs(staging)
    try:
        # As tf.train.Checkpoint does, but for a quarter of the processor time.
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=checkpoint_prefix(staging, step),
                tensor_names=[*(name + SUFFIX for name in arrays), OBJECT_GRAPH],
                shape_and_slices=[""] * (len(arrays) + 1),
                tensors=[*arrays.values(), _object_graph(arrays)],
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
    finally:
        with contextlib.suppress(*FILE_ERRORS):  # an error before is the one to tell
            remove(staging)


def _object_graph(names: Iterable[str]) -> bytes:
    """Describes arrays as nested dictionaries of variables, for tf.train.Checkpoint."""
    graph = TrackableObjectGraph()
    nodes = {"": graph.nodes.add()}
    for name in names:
        path = ""
        for part in name.split("/"):
            parent, path = nodes[path], f"{path}/{part}"
            if path not in nodes:
                parent.children.add(node_id=len(graph.nodes), local_name=part)
                nodes[path] = graph.nodes.add()
        nodes[path].attributes.add(
            name="VARIABLE_VALUE", full_name=name, checkpoint_key=name + SUFFIX
        )
    return graph.SerializeToString()


def delete_checkpoint(directory: str, step: int) -> None:
    """Removes a step's files, the index first."""
    for name in reversed(_files(directory, step)):
        remove(os.path.join(directory, name))


def _files(directory: str, step: int) -> list[str]:
    """Names of a checkpoint's files, the index last."""
    names = list_names(directory)
    return [name for name in names if name.startswith(f"ckpt-{step}.")]
