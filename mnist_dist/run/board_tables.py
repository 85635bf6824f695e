"""Tables as Markdown, for TensorBoard's text."""

import re
from collections.abc import Iterable, Sequence

from mnist_dist.files.untrusted import printable


def create_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table whose cells show as they are, whatever is in them.

    Args:
      header: a heading for each column, without signs that Markdown knows.
      rows: as many cells each.
    """
    lines = [header, ["---"] * len(header)]
    lines += [[_as_code(printable(str(cell))) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _as_code(text: str) -> str:
    """Returns text between more backticks in a row than are in it."""
    if not text:
        return ""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"
