"""One option of a training run: default, help, bounds, and how a value is checked.

A flag and a keyword argument are checked by the same parser, and so with the same text.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from absl import flags

from mnist_dist.errors import InputError

# Roles. A SETTING shapes the results: it cannot change in a run that goes on. An OWN
# option may differ between workers: paths on their disks, and which worker this is. A
# START option holds for one start: it is not taken over when the run goes on.
SETTING, OWN, START = "setting", "own", "start"


class OptionError(InputError, ValueError):
    """An option has a value that it cannot have; a `ValueError` to callers in Python."""


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    lower: float | None = None,
    upper: float | None = None,
    choices: Sequence[str] = (),
    role: str = "",
    is_flag: bool = True,
) -> Any:
    """Returns the field of an option in a dataclass.

    Args:
      default: its value where it is not given; missing: it must be given.
      help: what it does, for a person.
      lower: smallest value.
      upper: largest value.
      choices: the only values.
      role: `SETTING`, `OWN`, `START`, or none of them.
      is_flag: whether a command line can give it.
    """
    metadata = {"help": help, "lower": lower, "upper": upper, "choices": choices}
    metadata |= {"role": role, "is_flag": is_flag}
    return dataclasses.field(default=default, metadata=metadata)


def parser_of(field: dataclasses.Field[Any]) -> flags.ArgumentParser:
    """Returns what reads and checks an option, as a flag and as a keyword alike."""
    annotation = str(field.type)
    bounds = {
        "lower_bound": field.metadata["lower"],
        "upper_bound": field.metadata["upper"],
    }
    if field.metadata["choices"]:
        return flags.EnumParser(list(field.metadata["choices"]))
    if annotation.startswith("bool"):
        return flags.BooleanParser()
    if annotation.startswith("int"):
        return flags.IntegerParser(**bounds)
    if annotation.startswith("float"):
        return flags.FloatParser(**bounds)
    if annotation.startswith("Sequence"):
        return flags.ListParser()
    return flags.ArgumentParser()


def check_value(field: dataclasses.Field[Any], value: Any) -> Any:
    """Returns an option's value as its parser gives it.

    Raises:
      OptionError: it is of another type, or out of bounds.
    """
    if (value is None and field.default is None) or callable(value):
        return value
    if field.name == "model_dir" and not value:
        raise OptionError("--model_dir: found nothing, expected a directory")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        if field.name == "freeze" and not isinstance(value, str):
            value = list(value)
        # NumPy's numbers too, which the parsers do not know.
        parsed = parser_of(field).parse(
            value.item() if hasattr(value, "item") else value
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"flag --{field.name}={value}: {error}") from None
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise OptionError(f"--{field.name}: found {parsed}, expected a finite number")
    return tuple(parsed) if isinstance(parsed, list) else parsed
