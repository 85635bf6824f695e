"""Read one CSV file: a line an image, its label in one column, its pixels in others."""

from __future__ import annotations

import csv
import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

import numpy as np

from mnist_dist.data.split_checks import square_side
from mnist_dist.data.stored import listed
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import open_file, quoted

LABEL_COLUMNS = frozenset({"label", "labels", "class", "target"})
# Numbers of the lines; pandas writes them without a name.
IGNORED_COLUMNS = frozenset({"id", "index", "", "unnamed: 0"})

_LINES_AT_A_TIME = 1000
_MAX_LINE_CHARACTERS = 1 << 22

# The number of a line in its file, and its text.
_Line = tuple[int, str]


class CsvTable(NamedTuple):
    """What a CSV file holds.

    Attributes:
      pixels: uint8 [n, number of pixels].
      labels: the text of each label, [n]; None if the file has none.
    """

    pixels: np.ndarray
    labels: list[str] | None


def read_csv_table(path: str, *, num_pixels: int | None = None) -> CsvTable:
    """Reads a CSV file of images.

    Args:
      path: the file. Its first line may name the columns.
      num_pixels: of each image, where another file of the data set has said it.

    Raises:
      InputError: the file cannot be read or is no such table.
    """
    name = quoted(path)
    with open_file(path) as (file, _):
        lines = _read_lines(io.TextIOWrapper(file, encoding="utf-8-sig"), name=name)
        first = next(lines, (1, ""))
        fields = [field.strip() for field in next(csv.reader([first[1]]))]
        has_header = not all(map(_is_number, fields))
        if has_header:
            columns = _Columns.from_header(fields, name=name)
        else:
            columns = _Columns.from_count(len(fields), num_pixels, name=name)
            lines = itertools.chain([first], lines)
        if num_pixels not in (None, len(columns.pixels)):
            raise InputError(
                f"{name}: found {len(columns.pixels)} columns of pixels, expected "
                f"{num_pixels} as in the training file"
            )
        labels: list[str] = []
        pieces = []
        while piece := list(itertools.islice(lines, _LINES_AT_A_TIME)):
            pieces.append(_parse(piece, columns, labels, name=name))
    if not pieces:
        raise InputError(f"{name}: found no line of pixels, expected one an image")
    table = CsvTable(np.concatenate(pieces), None if columns.label is None else labels)
    if not has_header:
        _check_label_comes_first(table, name=name)
    return table


class _Columns(NamedTuple):
    """Which column of a table is what; `label` is None if there is none."""

    width: int
    label: int | None
    pixels: list[int]

    @classmethod
    def from_header(cls, header: list[str], *, name: str) -> _Columns:
        names = [column.lower() for column in header]
        labels = [i for i, column in enumerate(names) if column in LABEL_COLUMNS]
        pixels = [
            i
            for i, column in enumerate(names)
            if column not in LABEL_COLUMNS | IGNORED_COLUMNS
        ]
        if len(labels) > 1 or square_side(len(pixels)) is None:
            raise InputError(
                f"{name}: found {len(header)} columns, {listed(header)}, expected one "
                f"of labels ({', '.join(sorted(LABEL_COLUMNS))}) and the pixels of a "
                "square grey image"
            )
        return cls(len(header), labels[0] if labels else None, pixels)

    @classmethod
    def from_count(cls, count: int, num_pixels: int | None, *, name: str) -> _Columns:
        if count == num_pixels:
            return cls(count, None, list(range(count)))
        if square_side(count - 1) is None:
            raise InputError(
                f"{name}: found {count} columns without names, expected the label and "
                "then the pixels of a square grey image"
            )
        return cls(count, 0, list(range(1, count)))


def _check_label_comes_first(table: CsvTable, *, name: str) -> None:
    """Refuses a table without names whose last column looks like the labels."""
    if table.labels is None or len(set(table.labels)) > 1:
        return
    if table.pixels[:, -1].min() < table.pixels[:, -1].max():
        raise InputError(
            f"{name}: found one value, {table.labels[0]}, in the first column and many "
            "in the last, expected the labels first, or a line that names the columns"
        )


def _read_lines(text: io.TextIOBase, *, name: str) -> Iterator[_Line]:
    """Yields the lines that are not blank."""
    try:
        for number in itertools.count(1):
            line = text.readline(_MAX_LINE_CHARACTERS)
            if not line:
                return
            if len(line) == _MAX_LINE_CHARACTERS:
                raise InputError(
                    f"{name}: found a line of {_MAX_LINE_CHARACTERS} characters or "
                    "more, expected fewer"
                )
            if line.strip():
                yield number, line
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not a text file ({error})") from error


def _parse(
    lines: list[_Line], columns: _Columns, labels: list[str], *, name: str
) -> np.ndarray:
    """Returns pixels, uint8 [n, number of pixels]; adds the text of each label."""
    for dtype in (np.int32, np.float64):  # the second takes ten times as long
        texts: list[str] = []
        try:
            values = _load(lines, columns, texts, dtype)
        except ValueError:
            continue
        pixels = values[:, columns.pixels]
        is_good = (pixels >= 0) & (pixels <= 255) & (pixels == np.rint(pixels))
        if not is_good.all():
            row, column = np.argwhere(~is_good)[0]
            _refuse(lines[row], columns.pixels[column], name=name)
        labels += texts
        return pixels.astype(np.uint8)
    for line in lines:
        fields = _split(line, name=name)
        if len(fields) != columns.width:
            raise InputError(
                f"{name}: found {len(fields)} columns in line {line[0]}, expected "
                f"{columns.width}"
            )
        for column in columns.pixels:
            if not _is_number(fields[column]):
                _refuse(line, column, name=name)
    raise InputError(
        f"{name}: found quotes that do not end in lines {lines[0][0]} to "
        f"{lines[-1][0]}, expected a number in each column"
    )


def _load(
    lines: list[_Line], columns: _Columns, texts: list[str], dtype: type
) -> np.ndarray:
    """Returns numbers [n, columns] with 0 for what is no pixel; adds to `texts`."""

    def keep(text: str) -> int:
        texts.append(text.strip())
        return 0

    converters: dict[int | str, Callable[[str], int]] = dict.fromkeys(
        set(range(columns.width)) - set(columns.pixels), lambda text: 0
    )
    if columns.label is not None:
        converters[columns.label] = keep
    with warnings.catch_warnings():
        # NumPy before 2.4 cuts fractions off integers, and only warns of it.
        warnings.simplefilter("error", DeprecationWarning)
        values: np.ndarray = np.loadtxt(
            [text for _, text in lines],
            dtype=dtype,
            delimiter=",",
            comments=None,
            quotechar='"',
            converters=converters,
            encoding="utf-8",
            ndmin=2,
        )
    if values.shape != (len(lines), columns.width):
        raise ValueError("found other lines or columns than expected")
    return values


def _refuse(line: _Line, column: int, *, name: str) -> NoReturn:
    found = _split(line, name=name)[column]
    raise InputError(
        f"{name}: found {found[:40]!r} in line {line[0]}, column {column + 1}, expected "
        "a pixel: a whole number from 0 to 255"
    )


def _split(line: _Line, *, name: str) -> list[str]:
    try:
        return next(csv.reader([line[1]]))
    except csv.Error as error:
        raise InputError(f"{name}: found {error} in line {line[0]}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
