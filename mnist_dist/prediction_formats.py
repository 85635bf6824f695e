"""Predictions as text: a table for people, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
from PIL import Image

from mnist_dist.image_files import Batch

FORMATS = ("table", "json", "csv")

_PICTURE_SIDE = 14  # characters, and half as many lines
_BLOCKS = " ▄▀█"
_SHADES = " .:-=+*#%@"


def format_header(output_format: str, *, top_k: int) -> str:
    """Returns what stands before all predictions; the table has no header."""
    if output_format != "csv":
        return ""
    columns = ["class", "probability"]
    columns += [f"{name}_{i}" for i in range(2, top_k + 1) for name in columns[:2]]
    return ",".join(["file", "index", *columns]) + "\n"


def format_predictions(
    output_format: str,
    batch: Batch,
    classes: np.ndarray,
    probabilities: np.ndarray,
    *,
    draw: str | None = None,
) -> str:
    """Returns the predictions of a batch, each in lines of its own.

    Args:
      output_format: one of `FORMATS`. JSON: an object a line, with `file`, `index`
        (null for a file that is a picture), `class`, `probability`; for k > 1 also
        `classes` and `probabilities`, lists of k. CSV: the same as columns. In both
        a probability has all digits that its float32 needs.
      batch: what was classified.
      classes: integers [n, k], the most probable first.
      probabilities: float32 [n, k], theirs.
      draw: for the table: None, or draw each picture as `blocks` (Unicode) or
        `ascii`.
    """
    format_batch = {"table": _format_table, "json": _format_json, "csv": _format_csv}
    if output_format == "table" and draw is not None:
        return _format_drawn_table(batch, classes, probabilities, draw)
    return format_batch[output_format](batch, classes, probabilities)


def _format_json(batch: Batch, classes: np.ndarray, probabilities: np.ndarray) -> str:
    lines = []
    for file, index, best, chances in zip(
        batch.files,
        batch.indices,
        classes.tolist(),
        probabilities.tolist(),
        strict=True,
    ):
        record = {"file": file, "index": index}
        record |= {"class": best[0], "probability": chances[0]}
        if len(best) > 1:
            record |= {"classes": best, "probabilities": chances}
        lines.append(json.dumps(record) + "\n")
    return "".join(lines)


def _format_csv(batch: Batch, classes: np.ndarray, probabilities: np.ndarray) -> str:
    text = io.StringIO()
    # A None becomes an empty field.
    csv.writer(text, lineterminator="\n").writerows(
        [file, index, *(value for pair in zip(best, chances) for value in pair)]
        for file, index, best, chances in zip(
            batch.files,
            batch.indices,
            classes.tolist(),
            probabilities.tolist(),
            strict=True,
        )
    )
    return text.getvalue()


def _format_table(batch: Batch, classes: np.ndarray, probabilities: np.ndarray) -> str:
    lines = [
        "  ".join([*_guesses(best, chances), name])
        for name, best, chances in zip(
            _names(batch), classes, probabilities, strict=True
        )
    ]
    return "".join(f"{line}\n" for line in lines)


def _format_drawn_table(
    batch: Batch, classes: np.ndarray, probabilities: np.ndarray, draw: str
) -> str:
    lines = []
    for name, image, best, chances in zip(
        _names(batch), batch.images, classes, probabilities, strict=True
    ):
        drawing = draw_picture(image, draw)
        beside = [name, *_guesses(best, chances)]
        height = max(len(drawing), len(beside))
        drawing += [" " * _PICTURE_SIDE] * (height - len(drawing))
        beside += [""] * (height - len(beside))
        lines += [f"{a}  {b}".rstrip() for a, b in zip(drawing, beside, strict=True)]
        lines.append("")
    return "".join(f"{line}\n" for line in lines)


def draw_picture(image: np.ndarray, draw: str) -> list[str]:
    """Draws a picture with characters, light ones on the dark of the terminal.

    Args:
      image: uint8 [height, width, 1 or 3].
      draw: `blocks`, two pixels a character, or `ascii`, shades.

    Returns:
      7 lines of 14 characters, which are about a square.
    """
    grey = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    rows = _PICTURE_SIDE // 2
    if draw == "ascii":
        small = grey.convert("L").resize((_PICTURE_SIDE, rows), Image.Resampling.BOX)
        shades = np.asarray(small).astype(int) * len(_SHADES) // 256
        return ["".join(_SHADES[s] for s in row) for row in shades]
    small = grey.convert("L").resize((_PICTURE_SIDE,) * 2, Image.Resampling.BOX)
    is_light = np.asarray(small) > 90
    upper, lower = is_light[::2], is_light[1::2]
    return ["".join(_BLOCKS[b] for b in row) for row in 2 * upper + lower]


def _guesses(classes: np.ndarray, probabilities: np.ndarray) -> list[str]:
    return [
        f"{label:>5}  {probability:>8.2%}"
        for label, probability in zip(classes, probabilities, strict=True)
    ]


def _names(batch: Batch) -> list[str]:
    """Names as they can be shown: what would control the terminal is escaped."""
    return [
        (file if file.isprintable() else repr(file))
        + ("" if index is None else f"[{index}]")
        for file, index in zip(batch.files, batch.indices, strict=True)
    ]
