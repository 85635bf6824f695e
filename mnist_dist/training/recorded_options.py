"""A run that goes on: options that are not given are those that it was begun with."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
import tensorflow as tf

from mnist_dist.device.peers import broadcast_from_chief
from mnist_dist.errors import InputError
from mnist_dist.run.checkpoints import list_checkpoints
from mnist_dist.run.config import is_restart
from mnist_dist.run.config_file import EARLIER_SETTINGS, load_config
from mnist_dist.run.paths import checkpoint_dirs, config_path
from mnist_dist.training.option import OWN, SETTING, START, OptionError
from mnist_dist.training.options import FIELDS, FLAG_FIELDS, TrainingOptions

_MAX_BYTES = 1 << 16  # of the options, as JSON


def take_recorded(
    options: TrainingOptions, given: Set[str], *, say: Callable[[str], None]
) -> TrainingOptions:
    """Returns options with a run's own in place of those that were not given.

    A run is taken over if it has a checkpoint, and is not to be begun anew.

    Args:
      options: as they were given, with defaults.
      given: names of those that were given.
      say: is told which given ones differ from the run's.

    Raises:
      InputError: `config.json` is damaged, or an option in it is wrong.
    """
    directory = options.model_dir
    begins_anew = options.restore == "none" and not is_restart(directory)
    if begins_anew or not any(map(list_checkpoints, checkpoint_dirs(directory))):
        return options
    config = load_config(directory)
    if config is None:
        return options
    recorded = EARLIER_SETTINGS | config["flags"]
    try:
        taken, changed = _with_recorded(options, recorded, given)
    except OptionError as error:
        raise InputError(f"{config_path(directory)}: {error}") from error
    for name, (old, new) in changed.items():
        say(f"--{name}: {new}; the run had {old}")
    return taken


def _with_recorded(
    options: TrainingOptions, recorded: Mapping[str, Any], given: Set[str]
) -> tuple[TrainingOptions, dict[str, tuple[Any, Any]]]:
    """Puts a run's own options in the place of those that were not given.

    Args:
      options: as they were given, with defaults.
      recorded: values of options by name, as `TrainingOptions.values` returned them.
      given: names of the options that were given.

    Returns:
      The options; and of those that were given, no settings, and differ: what was
      recorded, and what was given.

    Raises:
      OptionError: what was recorded is no value for an option.
    """
    # The length is one thing, said in two ways.
    lengths = {"train_epochs", "train_steps"}
    given = set(given) | (lengths if lengths & set(given) else set())
    if options.data is not None:
        given.add("data_dir")
    taken, changed = {}, {}
    for name in FLAG_FIELDS.keys() & recorded.keys():
        role, value = FIELDS[name].metadata["role"], getattr(options, name)
        if role == START or (role == OWN and name != "data_dir"):
            continue
        if name not in given:
            taken[name] = recorded[name]
        elif role != SETTING and name != "data_dir" and recorded[name] != value:
            changed[name] = (recorded[name], value)
    return dataclasses.replace(options, **taken), changed


def share_options(
    strategy: tf.distribute.Strategy, options: TrainingOptions
) -> TrainingOptions:
    """Returns options on every worker as the chief has them, but for a worker's own.

    All workers must call it.
    """
    text = json.dumps(options.shared()).encode()
    if len(text) > _MAX_BYTES:
        raise InputError(
            f"the options have {len(text)} bytes as JSON, expected at most {_MAX_BYTES}"
        )
    padded = np.frombuffer(text.ljust(_MAX_BYTES), np.uint8)
    received = broadcast_from_chief(strategy, {"options": padded})["options"]
    return dataclasses.replace(options, **json.loads(received.tobytes()))
