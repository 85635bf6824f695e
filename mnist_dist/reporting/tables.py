"""A comparison of runs as text: for a terminal, as JSON, CSV or Markdown."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from mnist_dist.files.untrusted import printable
from mnist_dist.reporting.comparison import RunComparison
from mnist_dist.reporting.run_summary import RunSummary

FORMATS = ("table", "json", "csv", "markdown")
_LONGEST_CELL = 40  # characters, on a terminal
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


def format_comparison(comparison: RunComparison, output_format: str) -> str:
    """Returns a comparison in one of `FORMATS`, without a line end."""
    if output_format == "json":
        return json.dumps(to_json(comparison), indent=2, allow_nan=False)
    if output_format == "csv":
        return _csv(comparison)
    rows = [describe_run(run, comparison.differing) for run in comparison.runs]
    header = list(rows[0])
    cells = [[row[name] for name in header] for row in rows]
    if output_format == "markdown":
        lines = [header, ["---"] * len(header), *cells]
        return "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines)
    table = [[_fit(cell) for cell in line] for line in [header, *cells]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def to_json(comparison: RunComparison) -> dict[str, Any]:
    """Returns a comparison as what JSON can hold: no records of single steps."""
    return {
        "runs": [
            _values(run)
            | {"options": dict(run.options), "versions": dict(run.versions)}
            for run in comparison.runs
        ],
        "differing": list(comparison.differing),
        "left_out": list(comparison.left_out),
    }


def describe_run(run: RunSummary, differing: Sequence[str]) -> dict[str, str]:
    """Returns the figures of a run by the heading of their column, for a person.

    Args:
      run: what it has recorded.
      differing: names of options that have a column.
    """

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    devices = run.devices or "-"
    if run.num_workers and run.num_workers > 1:
        devices += f" x {run.num_workers} workers"
    total = f"/{run.total_steps:,}" if run.total_steps else ""
    return {
        "run": run.name,
        **{name: show_option(run.options.get(name)) for name in differing},
        "best": shown(run.best_accuracy, ".2%"),
        "at step": shown(run.best_step, ","),
        "final": shown(run.final_accuracy, ".2%"),
        "loss": shown(run.final_loss, ".4f"),
        "steps": f"{run.step:,}{total}",
        "time": show_seconds(run.seconds),
        "images/s": shown(run.images_per_second, ",.0f"),
        "devices": devices,
        "resumed": shown(run.num_resumes, ","),
        "ended": show_ending(run),
    }


def show_ending(run: RunSummary) -> str:
    """Returns how a run ended, for a person."""
    if run.state == "done" and run.reason == "all steps are done":
        return "done"
    return f"{run.state}: {run.reason}" if run.reason else run.state


def show_seconds(seconds: float | None) -> str:
    """Returns a time as 1:02:03 or 2:03."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_option(value: Any) -> str:
    """Returns the value of an option, for a person."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _values(run: RunSummary) -> dict[str, Any]:
    """Returns the figures of a run by name, as numbers."""
    names = (
        *("name", "model_dir", "state", "reason", "step", "total_steps"),
        *("best_accuracy", "best_step", "final_accuracy", "final_loss", "split"),
        *("train_loss", "seconds", "images_per_second", "devices", "num_workers"),
        *("num_resumes", "command", "problems"),
    )
    return {name: getattr(run, name) for name in names}


def _csv(comparison: RunComparison) -> str:
    """Returns a line for each run; options that differ have names like `option_seed`."""
    lines = []
    for run in comparison.runs:
        values = _values(run)
        values["problems"] = "; ".join(run.problems)
        options = {
            f"option_{name}": run.options.get(name) for name in comparison.differing
        }
        lines.append(values | options)
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _no_formula(v) for k, v in line.items()} for line in lines)
    return text.getvalue().rstrip("\n")


def _no_formula(value: Any) -> Any:
    """Returns a text that a spreadsheet shows, and does not compute.

    As the OWASP advises against "CSV injection".
    """
    is_formula = isinstance(value, str) and value.startswith(_FORMULA_SIGNS)
    return f"'{value}" if is_formula else value


def _markdown(cell: str) -> str:
    for sign in "\\|<>`*_[]":
        cell = cell.replace(sign, f"\\{sign}")
    return printable(" ".join(cell.split()))


def _fit(cell: str) -> str:
    cell = printable(cell)
    return cell if len(cell) <= _LONGEST_CELL else f"{cell[: _LONGEST_CELL - 3]}..."
