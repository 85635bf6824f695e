"""Checkpoints: named arrays <-> files in the format of tf.train.Checkpoint.

Nothing here knows a strategy or a model. A save takes arrays already copied to the
host, so a thread of its own writes them while training goes on, and any reader
(`tf.train.load_checkpoint`, another replica count, NumPy) finds them by name.
"""

import concurrent.futures
import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from mnist_dist.errors import InputError

T = TypeVar("T")

Arrays = dict[str, np.ndarray]
Specs = Mapping[str, tuple[tuple[int, ...], np.dtype]]

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# What reading a damaged checkpoint raises, depending on where the damage is.
DAMAGE = (tf.errors.OpError, IndexError, ValueError, UnicodeDecodeError)


class CheckpointWriter:
    """Writes checkpoints one after the other in the background."""

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending: concurrent.futures.Future[None] | None = None

    def save(
        self, arrays: Arrays, *, directory: str, step: int, max_to_keep: int
    ) -> None:
        """Begins to write `directory/ckpt-<step>`; older ones past the limit go.

        Waits for the save before, and raises what it raised.
        """
        self.wait()
        self._pending = self._thread.submit(
            _save, arrays, directory=directory, step=step, max_to_keep=max_to_keep
        )

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          tf.errors.OpError, OSError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def checkpoint_prefix(directory: str, step: int) -> str:
    """Returns the path of a step's checkpoint, as TensorFlow takes it."""
    return os.path.join(directory, f"ckpt-{step}")


def list_checkpoints(directory: str) -> list[int]:
    """Returns the steps of which `directory` has a checkpoint, newest first."""
    if not tf.io.gfile.isdir(directory):
        return []
    names = [
        re.fullmatch(r"ckpt-(\d+)\.(?:index|data-.*)", name)
        for name in tf.io.gfile.listdir(directory)
    ]
    return sorted({int(name[1]) for name in names if name}, reverse=True)


def load_arrays(prefix: str) -> Arrays:
    """Reads every array of a checkpoint, so that damage anywhere is found.

    Raises:
      tf.errors.OpError, IndexError, ValueError, UnicodeDecodeError: it is damaged.
    """
    reader = tf.train.load_checkpoint(prefix)
    # The graph of objects too, which lies at the end: a truncated file lacks it.
    everything = {
        name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
    }
    return {
        name.removesuffix(_SUFFIX): np.asarray(value)
        for name, value in everything.items()
        if name.endswith(_SUFFIX)
    }


def load_newest(directory: str, *, specs: Specs) -> Arrays | None:
    """Loads the newest checkpoint that is whole, or None where there is none.

    Args:
      directory: where `ckpt-<step>` files lie; a state file is not consulted.
      specs: shape and dtype that the run needs, by name.

    Raises:
      InputError: there are checkpoints but none is whole, or the newest whole one
        is of another model or optimizer.
    """
    steps = list_checkpoints(directory)
    for step in steps:
        try:
            return load_step(directory, step, specs=specs)
        except DAMAGE as error:
            if isinstance(error, InputError):
                raise
            logging.warning(
                "%s is damaged and skipped: %s: %s",
                checkpoint_prefix(directory, step),
                type(error).__name__,
                str(error).splitlines()[0] if str(error) else "no reason given",
            )
    if steps:
        raise InputError(
            f"{directory}: all {len(steps)} checkpoints are damaged (steps "
            f"{', '.join(map(str, steps))}); nothing was overwritten"
        )
    return None


def find_start(directory: str, *, restore: str, specs: Specs) -> Arrays | None:
    """Finds what a run starts from, or None for its first step.

    Args:
      directory: of the run's checkpoints.
      restore: `auto` (the newest), `none`, or a step.
      specs: as `load_newest` takes it.

    Raises:
      InputError: nothing to restore is whole, or `none` where checkpoints are.
    """
    steps = list_checkpoints(directory)
    if restore == "auto":
        return load_newest(directory, specs=specs)
    if restore == "none":
        if steps:
            raise InputError(
                f"--restore=none: found checkpoints in {directory} (steps "
                f"{', '.join(map(str, steps))}), expected none; use another --model_dir"
            )
        return None
    step = int(restore)
    if step not in steps:
        raise InputError(
            f"--restore: found {step}, expected one of the steps in {directory}: "
            f"{', '.join(map(str, steps)) or 'none'}"
        )
    try:
        arrays = load_step(directory, step, specs=specs)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"--restore: {checkpoint_prefix(directory, step)} is damaged: {error}"
        ) from error
    return arrays


def set_aside_later(directory: str, step: int) -> None:
    """Moves checkpoints past a step to `directory/later-than-<step>`.

    A run that goes on from `step` must neither count them nor resume from them.
    """
    aside = os.path.join(directory, f"later-than-{step}")
    for later in [s for s in list_checkpoints(directory) if s > step]:
        tf.io.gfile.makedirs(aside)
        # The index first: without it the rest is not taken for a checkpoint.
        for path in sorted(
            tf.io.gfile.glob(f"{checkpoint_prefix(directory, later)}.*"), reverse=True
        ):
            tf.io.gfile.rename(path, os.path.join(aside, os.path.basename(path)), True)


def load_weights(prefix: str, *, specs: Specs) -> Arrays:
    """Loads the model's weights alone, for a warm start.

    Args:
      prefix: path of a checkpoint, as in `MODEL_DIR/checkpoints/ckpt-100`.
      specs: what the new run holds; its `model/...` entries are needed.

    Raises:
      InputError: it cannot be read, or is of another model.
    """
    try:
        arrays = load_arrays(prefix)
    except DAMAGE as error:
        raise InputError(
            f"--init_from: {prefix} cannot be read: {' '.join(str(error).split())}"
        ) from error
    needed = {name: spec for name, spec in specs.items() if name.startswith("model/")}
    weights = {name: a for name, a in arrays.items() if name.startswith("model/")}
    check_specs(weights, specs=needed, name=f"--init_from: {prefix}")
    ema = {f"ema/{name.removeprefix('model/')}": a for name, a in weights.items()}
    return weights | {name: a for name, a in ema.items() if name in specs}


def load_step(directory: str, step: int, *, specs: Specs) -> Arrays:
    """Loads one step's checkpoint and checks that it is what the run needs.

    Raises:
      InputError: names or shapes differ from `specs`.
      ValueError, tf.errors.OpError, IndexError: as `read_step`.
    """
    arrays = read_step(directory, step)
    check_specs(arrays, specs=specs, name=checkpoint_prefix(directory, step))
    return arrays


def read_step(directory: str, step: int) -> Arrays:
    """Reads one step's checkpoint, whatever model it is of.

    Raises:
      ValueError, tf.errors.OpError, IndexError: one of `DAMAGE`: it is damaged, or a
        link to somewhere outside `directory`.
    """
    prefix = checkpoint_prefix(directory, step)
    inside = os.path.realpath(directory)
    if os.path.dirname(os.path.realpath(f"{prefix}.index")) != inside:
        raise ValueError("its index file is a link to outside the directory")
    return load_arrays(prefix)


def check_specs(arrays: Arrays, *, specs: Specs, name: str) -> None:
    """Compares names and shapes with what is needed.

    Raises:
      InputError: names each that is missing, extra or of another shape.
    """
    differences = [f"missing {key}" for key in sorted(specs.keys() - arrays.keys())]
    differences += [f"unknown {key}" for key in sorted(arrays.keys() - specs.keys())]
    differences += [
        f"{key} found {arrays[key].shape} expected {specs[key][0]}"
        for key in sorted(specs.keys() & arrays.keys())
        if arrays[key].shape != specs[key][0]
    ]
    if differences:
        raise InputError(
            f"{name} is of another model or optimizer: {'; '.join(differences)}"
        )


def nest(named: Mapping[str, T]) -> dict[str, Any]:
    """Turns names with slashes into nested dictionaries, whose keys TensorFlow joins."""
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def _save(arrays: Arrays, *, directory: str, step: int, max_to_keep: int) -> None:
    staging = os.path.join(directory, f".writing-{step}")
    if tf.io.gfile.isdir(staging):
        tf.io.gfile.rmtree(staging)
    tf.io.gfile.makedirs(staging)
    with tf.device("/CPU:0"):
        written = tf.train.Checkpoint(
            **nest({name: tf.Variable(a) for name, a in arrays.items()})
        ).write(checkpoint_prefix(staging, step))
    # The index last: a checkpoint without one is not taken for a checkpoint.
    for path in sorted(tf.io.gfile.glob(f"{written}.*")):
        tf.io.gfile.rename(path, os.path.join(directory, os.path.basename(path)), True)
    tf.io.gfile.rmtree(staging)
    for old in list_checkpoints(directory)[max_to_keep:]:
        delete_checkpoint(directory, old)
    # For `tf.train.latest_checkpoint`; nothing of ours reads it.
    state_file = os.path.join(directory, "checkpoint")
    with tf.io.gfile.GFile(f"{state_file}.writing", "w") as file:
        file.write(f'model_checkpoint_path: "ckpt-{step}"\n')
    tf.io.gfile.rename(f"{state_file}.writing", state_file, overwrite=True)


def delete_checkpoint(directory: str, step: int) -> None:
    """Removes a step's files, the index first."""
    prefix = checkpoint_prefix(directory, step)
    for path in sorted(tf.io.gfile.glob(f"{prefix}.*"), reverse=True):
        tf.io.gfile.remove(path)
