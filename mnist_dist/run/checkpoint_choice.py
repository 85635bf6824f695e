"""Chooses a checkpoint of a run: the newest that is whole, or the one asked for."""

import contextlib
import os
import re
import shlex
from collections.abc import Sequence

import numpy as np
from absl import logging

from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays, Specs, check_specs, describe_nonfinite
from mnist_dist.files.durable import describe_error
from mnist_dist.run import checkpoints

_TRIES = 5  # to list checkpoints that a training replaces while they are read


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
            prefix = checkpoints.checkpoint_prefix(directory, step)
            try:
                arrays = checkpoints.read_step(directory, step)
            except checkpoints.DAMAGE as error:
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
    candidates = [
        (step, d) for d in directories for step in checkpoints.list_checkpoints(d)
    ]
    return sorted(candidates, key=lambda candidate: candidate[0], reverse=True)


def load_restored(
    directories: Sequence[str],
    *,
    restore: str,
    specs: Specs,
    takes_new_slots: bool = False,
) -> tuple[str | None, Arrays]:
    """Loads the checkpoint that a run is to go on from.

    Args:
      directories: of the run's checkpoints, as `read_newest` takes them.
      restore: `auto` (the newest), `none`, a step, or the path of a checkpoint.
      specs: shape and dtype that the run needs, by name.
      takes_new_slots: whether optimizer slots that the checkpoint lacks start at zero,
        and those that the run does not need are left out: layers that were frozen may
        be trained now, or the reverse, or the update rule is another.

    Returns:
      The checkpoint's path, as TensorFlow takes it, and everything in it; None and
      nothing where the run begins.

    Raises:
      InputError: nothing to restore is whole, it is of another model or optimizer, or
        its weights are not finite;
        `none` where checkpoints are; or a checkpoint of another run where this one has
        its own.
    """
    if restore == "auto":
        found = read_newest(directories)
        if found is None:
            return None, {}
        prefix, arrays = found
        if takes_new_slots:
            arrays = _with_new_slots(arrays, specs)
        check_specs(arrays, specs=specs, name=prefix)
        _check_finite(prefix, arrays, directories=directories)
        return prefix, arrays
    listed = _list_steps(directories)
    if restore == "none":
        if listed:
            raise InputError(
                f"--restore=none: found checkpoints in {directories[0]} (steps "
                f"{listed}), expected none; --overwrite deletes them"
            )
        return None, {}
    if restore.isascii() and restore.isdigit():
        prefix, arrays = read_named_step(
            directories, restore, flag="--restore", words="auto, none"
        )
    else:
        directory, step = parse_prefix(restore, flag="--restore")
        own = {os.path.realpath(d) for d in directories}
        place = os.path.realpath(directory)
        if os.path.basename(place).startswith("later-than-"):
            place = os.path.dirname(place)  # set aside when the run went back
        if listed and place not in own:
            raise InputError(
                f"--restore: found {restore}, a checkpoint of another run, but "
                f"{directories[0]} has its own (steps {listed}); expected one of these"
            )
        prefix, arrays = read_named_step(
            [directory], str(step), flag="--restore", words="auto, none"
        )
    if takes_new_slots:
        arrays = _with_new_slots(arrays, specs)
    check_specs(arrays, specs=specs, name=prefix)
    _check_finite(prefix, arrays, directories=directories)
    return prefix, arrays


def _with_new_slots(arrays: Arrays, specs: Specs) -> Arrays:
    """Fits a checkpoint's optimizer slots to those that a run needs."""
    slots = {name for name in specs if name.startswith("optimizer/")}
    missing = sorted(slots - arrays.keys())
    surplus = {n for n in arrays if n.startswith("optimizer/")} - slots
    if missing or surplus:
        logging.warning(
            "optimizer slots: %d start at zero (%s), %d are left out",
            len(missing),
            ", ".join(missing) or "none",
            len(surplus),
        )
    kept = {name: array for name, array in arrays.items() if name not in surplus}
    return kept | {name: np.zeros(*specs[name]) for name in missing}


def _check_finite(prefix: str, arrays: Arrays, *, directories: Sequence[str]) -> None:
    if not (reason := describe_nonfinite(_weights(arrays))):
        return
    way = "no other checkpoint is good"
    for step, directory in _newest_first(directories):
        with contextlib.suppress(*checkpoints.DAMAGE):
            other = checkpoints.read_step(directory, step)
            if not describe_nonfinite(_weights(other)):
                model_dir = shlex.quote(os.path.dirname(directory))
                way = (
                    f"`mnist-dist weights revert --model_dir={model_dir} --step={step}` "
                    "goes back to the newest checkpoint that is good"
                )
                break
    raise InputError(f"{prefix}: {reason}, so no step from it would be; {way}")


def _weights(arrays: Arrays) -> Arrays:
    return {name: a for name, a in arrays.items() if name.startswith("model/")}


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
        if step in map(str, checkpoints.list_checkpoints(directory)):
            prefix = checkpoints.checkpoint_prefix(directory, int(step))
            try:
                return prefix, checkpoints.read_step(directory, int(step))
            except checkpoints.DAMAGE as error:
                damage = f"{prefix} is damaged: {describe_error(error)}"
    if damage:
        raise InputError(f"{flag}: {damage}")
    raise InputError(
        f"{flag}: found {step}, expected {words} or one of the steps in "
        f"{directories[0]}: {_list_steps(directories) or 'none'}"
    )


def _list_steps(directories: Sequence[str]) -> str:
    steps = {
        step
        for directory in directories
        for step in checkpoints.list_checkpoints(directory)
    }
    return ", ".join(map(str, sorted(steps, reverse=True)))


def parse_prefix(path: str, *, flag: str) -> tuple[str, int]:
    """Splits the path of a checkpoint, as in `RUN/best/ckpt-100`, or of its index.

    Returns:
      The directory and the step.

    Raises:
      InputError: no checkpoint has this path.
    """
    directory, name = os.path.split(path.removesuffix(".index"))
    match = re.fullmatch(checkpoints.NAME, name)
    directory = directory or "."
    if not match or int(match[1]) not in checkpoints.list_checkpoints(directory):
        raise InputError(
            f"{flag}: found {path!r}, expected the path of a checkpoint, as in "
            "RUN/checkpoints/ckpt-100"
        )
    return directory, int(match[1])
