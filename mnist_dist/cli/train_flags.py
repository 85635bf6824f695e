"""The flags of `train`, made from the options of a training run."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from mnist_dist.cli import program
from mnist_dist.errors import InputError
from mnist_dist.training.option import parser_of
from mnist_dist.training.options import FLAG_FIELDS, TrainingOptions

FLAGS = flags.FLAGS


def _define_flags() -> None:
    for name, field in FLAG_FIELDS.items():
        # A run's directory has no default, and is asked for when flags are checked.
        default: Any = None if name == "model_dir" else field.default
        text = field.metadata["help"]
        bounds = {
            "lower_bound": field.metadata["lower"],
            "upper_bound": field.metadata["upper"],
        }
        match parser_of(field):
            case flags.EnumParser() as parser:
                flags.DEFINE_enum(name, default, parser.enum_values, text)
            case flags.BooleanParser():
                flags.DEFINE_bool(name, default, text)
            case flags.IntegerParser():
                flags.DEFINE_integer(name, default, text, **bounds)
            case flags.FloatParser():
                flags.DEFINE_float(name, default, text, **bounds)
            case flags.ListParser():
                flags.DEFINE_list(name, list(default), text)
            case _:
                flags.DEFINE_string(name, default, text)


_define_flags()


def given() -> dict[str, Any]:
    """Returns the flags that were given, by name, and `model_dir` in any case."""
    names = [name for name in FLAG_FIELDS if FLAGS[name].present]
    return {name: FLAGS[name].value for name in {*names, "model_dir"}}


def parse(args: Sequence[str]) -> TrainingOptions:
    """Parses and checks a command line of flags alone.

    Raises:
      InputError: it is wrong.
    """
    if rest := program.parse(["train", *args])[1:]:
        raise InputError(f"unexpected argument {rest[0]!r}: flags begin with --")
    return TrainingOptions(**given())
