"""Compares runs: a table of their settings and results.

Runs, or folders that are searched for runs; one that still trains is shown too:
  python -m mnist_dist.report --model_dir=runs/a --model_dir=runs/b
  python -m mnist_dist.report --model_dir=runs
For programs and pages:
  python -m mnist_dist.report --model_dir=runs --format=csv
  python -m mnist_dist.report --model_dir=runs --format=markdown

It reads config.json and metrics.jsonl, and writes nothing into a run. The first columns
are the settings in which the runs differ. What is no run, or is damaged, is named in one
line on standard error, and the others are shown. Exit code 2 if no run is left.
"""

import sys
from collections.abc import Sequence

from absl import flags

from mnist_dist.cli import program
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import printable
from mnist_dist.reporting.comparison import RunComparison, compare_runs
from mnist_dist.reporting.tables import FORMATS, format_comparison

flags.DEFINE_multi_string(
    "model_dir",
    [],
    "Directory of a run, or folder of runs; may be given several times.",
)
flags.DEFINE_enum("format", "table", FORMATS, "Form of the results on standard output.")

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Reports on the runs that the flags name; returns the exit code."""
    del argv
    check_flags()
    comparison = compare_runs(FLAGS.model_dir)
    print_problems(comparison)
    text = format_comparison(comparison, FLAGS.format)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def check_flags() -> None:
    """Checks what one flag's own bounds cannot say.

    Raises:
      InputError: no run is named.
    """
    if not FLAGS.model_dir:
        raise InputError(
            "--model_dir: found nothing, expected a run or a folder of runs"
        )


def print_problems(comparison: RunComparison) -> None:
    """Says on standard error, in a line each, what is damaged or left out."""
    problems = [problem for run in comparison.runs for problem in run.problems]
    for line in problems + [f"left out: {reason}" for reason in comparison.left_out]:
        print(printable(f"report: warning: {line}"), file=sys.stderr)


if __name__ == "__main__":
    program.run(main)
