"""The flags of `doctor`: those of `train`, and the form of the results."""

from collections.abc import Sequence

from absl import flags

from mnist_dist.cli import program, train_flags
from mnist_dist.errors import InputError
from mnist_dist.training.options import TrainingOptions

_CLUSTER_TIMEOUT = 30.0  # seconds, unless told otherwise: all is done in a minute

flags.DEFINE_enum("format", "table", ["table", "json"], "Form of the results.")


def options() -> TrainingOptions:
    """Returns the options of the run that is meant; it lies here unless told otherwise."""
    given = train_flags.given()
    return TrainingOptions(**given | {"model_dir": given["model_dir"] or "."})


def cluster_timeout() -> float:
    """Returns how many seconds to wait for the other workers."""
    flag = flags.FLAGS["cluster_timeout"]
    return float(flag.value or 0) if flag.present else _CLUSTER_TIMEOUT


def parse(args: Sequence[str]) -> TrainingOptions:
    """Parses and checks a command line of flags alone.

    Raises:
      InputError: it is wrong.
    """
    if rest := program.parse(["doctor", *args])[1:]:
        raise InputError(f"unexpected argument {rest[0]!r}: flags begin with --")
    return options()
