"""Compares runs: a table of their settings and results.

Runs, or folders that are searched for runs; one that still trains is shown too:
  python -m mnist_dist.report --model_dir=runs/a --model_dir=runs/b
  python -m mnist_dist.report --model_dir=runs
For programs and pages:
  python -m mnist_dist.report --model_dir=runs --format=csv
  python -m mnist_dist.report --model_dir=runs --format=markdown
A page for a browser, with curves, confusion matrix and mistakes (the extra `report`):
  python -m mnist_dist.report --model_dir=runs --output=report.html

It reads config.json and metrics.jsonl, and writes nothing into a run. The first columns
are the settings in which the runs differ. What is no run, or is damaged, is named in one
line on standard error, and the others are shown. For a page each run's best weights are
evaluated, on the CPU. Exit code 2 if no run is left.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence

from absl import flags

from mnist_dist.cli import program
from mnist_dist.errors import InputError
from mnist_dist.files.local import is_local
from mnist_dist.files.untrusted import printable, quoted
from mnist_dist.reporting.comparison import RunComparison, compare_runs
from mnist_dist.reporting.tables import FORMATS, format_comparison

flags.DEFINE_multi_string(
    "model_dir",
    [],
    "Directory of a run, or folder of runs; may be given several times.",
)
flags.DEFINE_enum("format", "table", FORMATS, "Form of the results on standard output.")
flags.DEFINE_string(
    "output",
    None,
    "File to write as a page for a browser, which needs no network; the extra `report` "
    "has the libraries for it.",
)

FLAGS = flags.FLAGS
_PAGE_LIBRARIES = ("plotly", "jinja2")


def main(argv: Sequence[str]) -> int:
    """Reports on the runs that the flags name; returns the exit code."""
    del argv
    check_flags()
    comparison = compare_runs(FLAGS.model_dir)
    print_problems(comparison)
    text = format_comparison(comparison, FLAGS.format)
    if FLAGS.output:
        write_page(comparison, FLAGS.output)
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
    if FLAGS.output is None:
        return
    if not FLAGS.output.endswith((".html", ".htm")):
        raise InputError(
            f"--output: found {quoted(FLAGS.output)}, expected the name of a page, "
            "which ends with .html"
        )
    folder = os.path.dirname(FLAGS.output) or "."
    if is_local(folder) and not os.path.isdir(folder):
        raise InputError(f"--output: found no folder {quoted(folder)} to write to")
    if missing := [n for n in _PAGE_LIBRARIES if not importlib.util.find_spec(n)]:
        raise InputError(
            f"--output: found no {' and no '.join(missing)}, with which the page is "
            "made; install the extra: pip install 'mnist_dist[report]'"
        )


def write_page(comparison: RunComparison, path: str) -> None:
    """Evaluates the runs and writes a page about them.

    Raises:
      RunError: the file cannot be written.
    """
    # Imported here: with TensorFlow it takes seconds, which the table does not need.
    with program.quiet_imports():
        from mnist_dist.reporting.answers import try_to_find_answers
        from mnist_dist.reporting.page import save_page

    answers = [try_to_find_answers(run) for run in comparison.runs]
    save_page(comparison, answers, path)


def print_problems(comparison: RunComparison) -> None:
    """Says on standard error, in a line each, what is damaged or left out."""
    problems = [problem for run in comparison.runs for problem in run.problems]
    for line in problems + [f"left out: {reason}" for reason in comparison.left_out]:
        print(printable(f"report: warning: {line}"), file=sys.stderr)


if __name__ == "__main__":
    program.run(main)
