"""Predictions as text: a table for people, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import itertools
import json
import types
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from mnist_dist.files.untrusted import printable
from mnist_dist.pictures.image_files import Batch

FORMATS = ("table", "json", "csv")

_DRAWING_WIDTH, _DRAWING_HEIGHT = 14, 7  # a character is about twice as high as wide
_BLOCKS = " ▄▀█"
_SHADES = " .:-=+*#%@"
_LIGHT = 64  # a block is lit from this mean level on: thin strokes stay whole


def format_header(output_format: str, *, top_k: int) -> str:
    """Returns what stands before all predictions: only CSV has a header."""
    if output_format != "csv":
        return ""
    columns = ["file", "index", "class", "probability"]
    for rank in range(2, top_k + 1):
        columns += [f"class_{rank}", f"probability_{rank}"]
    return ",".join(columns) + "\n"


def format_predictions(
    output_format: str,
    batch: Batch,
    classes: np.ndarray,
    probabilities: np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    drawing: str | None = None,
) -> str:
    """Returns the predictions of a batch, each in lines of its own.

    JSON: an object a line, with `file`, `index` (null for a file that is a picture),
    `class` and `probability`; for k > 1 also `classes` and `probabilities`, lists of
    k; where classes have names `name`, and for k > 1 `names`. CSV: the same in columns,
    without names. In both a probability has all its digits.

    Args:
      output_format: one of `FORMATS`.
      batch: what was classified.
      classes: integers [n, k], the most probable first.
      probabilities: float32 [n, k], theirs.
      class_names: the name of each class; None: they have none.
      drawing: how the table shows the images: None (not), `blocks` or `ascii`.
    """
    if output_format == "json":
        return _format_json(batch, classes, probabilities, class_names)
    if output_format == "csv":
        return _format_csv(batch, classes, probabilities)
    return _format_table(batch, classes, probabilities, class_names, drawing)


# File, index, the k classes, their probabilities.
_Row = tuple[str, int | None, list[int], list[float]]


def _rows(
    batch: Batch, classes: np.ndarray, probabilities: np.ndarray
) -> Iterator[_Row]:
    return zip(
        batch.files,
        batch.indices,
        classes.tolist(),
        probabilities.tolist(),
        strict=True,
    )


def _format_json(
    batch: Batch,
    classes: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str] | None,
) -> str:
    lines = []
    for file, index, labels, chances in _rows(batch, classes, probabilities):
        record: dict[str, object] = {"file": file, "index": index}
        record |= {"class": labels[0], "probability": chances[0]}
        if len(labels) > 1:
            record |= {"classes": labels, "probabilities": chances}
        if class_names:
            names = [class_names[label] for label in labels]
            record |= {"name": names[0]} | ({"names": names} if len(names) > 1 else {})
        lines.append(json.dumps(record) + "\n")
    return "".join(lines)


def _format_csv(batch: Batch, classes: np.ndarray, probabilities: np.ndarray) -> str:
    lines: list[str] = []
    sink = types.SimpleNamespace(write=lines.append)
    # Before Python 3.13 only what is in the end of a line is put in quotes.
    csv.writer(sink, lineterminator="\r\n").writerows(
        [file, index, *itertools.chain(*zip(labels, chances, strict=True))]
        for file, index, labels, chances in _rows(batch, classes, probabilities)
    )
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def _format_table(
    batch: Batch,
    classes: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str] | None,
    drawing: str | None,
) -> str:
    lines = []
    # What would control the terminal is escaped.
    shown = [printable(name) for name in class_names or ()]
    width = max(map(len, shown), default=0)
    names = [f"{name:<{width}}  " for name in shown] or [""] * (int(classes.max()) + 1)
    rows = _rows(batch, classes, probabilities)
    for image, (file, index, labels, chances) in zip(batch.images, rows, strict=True):
        name = file if file.isprintable() else repr(file)
        name += "" if index is None else f"[{index}]"
        guesses = [
            f"{label:>5}  {names[label]}{chance:>7.2%}"
            for label, chance in zip(labels, chances, strict=True)
        ]
        if drawing is None:
            lines.append("  ".join([*guesses, name]))
        else:
            drawn = draw_image(image, drawing)
            lines += _side_by_side(drawn, [f"  {name}", *guesses])
            lines.append("")
    return "".join(f"{line}\n" for line in lines)


def draw_image(image: np.ndarray, drawing: str) -> list[str]:
    """Draws an image with characters, for a terminal that is light on dark.

    Args:
      image: uint8 [height, width, 1 or 3].
      drawing: `blocks`, two pixels a character, or `ascii`, shades.

    Returns:
      7 lines of 14 characters, which look about square.
    """
    grey = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("L")
    if drawing == "ascii":
        small = grey.resize((_DRAWING_WIDTH, _DRAWING_HEIGHT), Image.Resampling.BOX)
        levels = np.asarray(small, np.int64) * len(_SHADES) // 256
        return ["".join(_SHADES[level] for level in row) for row in levels]
    small = grey.resize((_DRAWING_WIDTH, 2 * _DRAWING_HEIGHT), Image.Resampling.BOX)
    is_light = np.asarray(small) >= _LIGHT
    blocks = 2 * is_light[::2] + is_light[1::2]
    return ["".join(_BLOCKS[block] for block in row) for row in blocks]


def _side_by_side(left: list[str], right: list[str]) -> list[str]:
    pairs = itertools.zip_longest(left, right, fillvalue="")
    return [f"{a:{_DRAWING_WIDTH}}{b}".rstrip() for a, b in pairs]
