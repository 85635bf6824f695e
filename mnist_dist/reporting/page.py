"""A comparison of runs as one HTML file, which needs no network and no TensorBoard."""

import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from mnist_dist.files.durable import replacing, reporting_errors
from mnist_dist.files.untrusted import printable
from mnist_dist.reporting.answers import Answers
from mnist_dist.reporting.comparison import RunComparison
from mnist_dist.reporting.curves import COLORS, draw_curves
from mnist_dist.reporting.run_summary import RunSummary
from mnist_dist.reporting.tables import describe_run, show_option

_TEMPLATE = "page.html.jinja"
_MAX_CONFUSION_CLASSES = 64  # of more, the matrix is wider than a page


def save_page(
    comparison: RunComparison, answers: Sequence[Answers | str], path: str
) -> None:
    """Writes a comparison as an HTML page.

    Args:
      comparison: of the runs.
      answers: of each run's best weights, or why there are none.
      path: of the file; one that is there is replaced.

    Raises:
      RunError: it cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["option"] = lambda value: printable(show_option(value))
    text = environment.get_template(_TEMPLATE).render(
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        runs=[
            {"run": run, "answers": found, "color": COLORS[n % len(COLORS)]}
            for n, (run, found) in enumerate(zip(comparison.runs, answers, strict=True))
        ],
        rows=[describe_run(run, comparison.differing) for run in comparison.runs],
        curves=draw_curves(comparison.runs),
        options=_all_options(comparison.runs),
        versions=_all_names([run.versions for run in comparison.runs]),
        differing=set(comparison.differing),
        left_out=comparison.left_out,
        max_confusion_classes=_MAX_CONFUSION_CLASSES,
    )
    with reporting_errors(path, so="no page was written"), replacing(path) as file:
        file.write(text.encode())


def _all_options(runs: Sequence[RunSummary]) -> list[str]:
    return _all_names([run.options for run in runs])


def _all_names(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({name for table in tables for name in table})
