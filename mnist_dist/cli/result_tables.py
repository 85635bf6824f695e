"""Facts and rows as text: a table for people, or one JSON object for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_dist.files.untrusted import printable


def format_results(
    output_format: str, facts: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Returns facts, and below them rows, all with the same columns.

    Args:
      output_format: `table`; or `json`: an object of the facts and of `rows`, a list
        of objects, in which None stands for what is not finite.
      facts: a line each.
      rows: a line each, below a header.
    """
    if output_format == "json":
        finite = [
            {
                name: None if isinstance(v, float) and not math.isfinite(v) else v
                for name, v in row.items()
            }
            for row in rows
        ]
        return json.dumps(dict(facts) | {"rows": finite}, indent=2)
    # Names may come from files of others: what would control the terminal is escaped.
    lines = [printable(f"{name:<10} {text}") for name, text in facts.items()]
    if rows:
        table = [list(rows[0])]
        table += [[_cell(value) for value in row.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            cells = [f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)]
            if text := "  ".join(cells).rstrip():
                lines.append(text)
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    if isinstance(value, list):
        return "x".join(map(str, value)) or "scalar"
    return "" if value is None else printable(str(value))
