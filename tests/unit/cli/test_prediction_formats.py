"""Predictions as text, read back."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from mnist_dist.cli.prediction_formats import (
    draw_image,
    format_header,
    format_predictions,
)
from mnist_dist.pictures.image_files import Batch

FILES = ["a.png", 'b,"c"\nd', "é\x1b[31m.npy", "é\x1b[31m.npy", "\udcff"]
INDICES = [None, None, 0, 1, None]
CROSS = np.zeros((28, 28, 1), np.uint8)
CROSS[12:16] = CROSS[:, 12:16] = 255
BATCH = Batch(FILES, INDICES, np.stack([CROSS] * 5))
RNG = np.random.default_rng(0)
CLASSES = np.array([RNG.permutation(10)[:3] for _ in FILES])
PROBABILITIES = -np.sort(-RNG.random((5, 3), dtype=np.float32))


def formatted(output_format, *, top_k=3, drawing=None):
    body = format_predictions(
        output_format,
        BATCH,
        CLASSES[:, :top_k],
        PROBABILITIES[:, :top_k],
        drawing=drawing,
    )
    return format_header(output_format, top_k=top_k) + body


def test_json_lines_read_back():
    found = [json.loads(line) for line in formatted("json").splitlines()]
    assert [row["file"] for row in found] == FILES
    assert [row["index"] for row in found] == INDICES
    assert [row["classes"] for row in found] == CLASSES.tolist()
    assert [row["class"] for row in found] == CLASSES[:, 0].tolist()
    chances = np.float32([row["probabilities"] for row in found])
    np.testing.assert_array_equal(chances, PROBABILITIES)
    assert [row["probability"] for row in found] == PROBABILITIES[:, 0].tolist()


def test_json_of_one_class_has_no_lists():
    (first, *_) = formatted("json", top_k=1).splitlines()
    assert list(json.loads(first)) == ["file", "index", "class", "probability"]


def test_names_of_classes_stand_beside_their_numbers():
    names = [f"class {number}" for number in range(9)] + ["\x1b[31mred"]
    for top_k in (1, 3):
        arguments = (BATCH, CLASSES[:, :top_k], PROBABILITIES[:, :top_k])
        text = format_predictions("json", *arguments, class_names=names)
        for row, classes in zip(text.splitlines(), CLASSES, strict=True):
            expected = [names[number] for number in classes[:top_k]]
            assert json.loads(row)["name"] == expected[0]
            assert json.loads(row).get("names") == (expected if top_k > 1 else None)
        table = format_predictions("table", *arguments, class_names=names)
        for line, classes in zip(table.splitlines(), CLASSES, strict=True):
            assert line.isprintable()
            for number in classes[:top_k]:
                assert f"{number}  class {number}" in line or "9  \\x1b[31mred" in line


@pytest.mark.parametrize("top_k", [1, 3])
def test_csv_reads_back(top_k):
    text = io.StringIO(formatted("csv", top_k=top_k), newline="")
    header, *found = csv.reader(text)
    pairs = ["class", "probability", "class_2", "probability_2"]
    pairs += ["class_3", "probability_3"]
    assert header == ["file", "index", *pairs[: 2 * top_k]]
    assert [row[0] for row in found] == FILES
    assert [row[1] for row in found] == ["", "", "0", "1", ""]
    assert [[int(v) for v in row[2::2]] for row in found] == CLASSES[:, :top_k].tolist()
    chances = np.float32([[float(v) for v in row[3::2]] for row in found])
    np.testing.assert_array_equal(chances, PROBABILITIES[:, :top_k])


@pytest.mark.parametrize("name", ["a\rb.png", "a\r\nb.png", "\r", "\n"])
def test_csv_quotes_every_end_of_a_line(name):
    batch = Batch([name] * 2, [None] * 2, np.stack([CROSS] * 2))
    text = format_predictions("csv", batch, CLASSES[:2, :1], PROBABILITIES[:2, :1])
    found = list(csv.reader(io.StringIO(text, newline="")))
    assert [(row[0], len(row)) for row in found] == [(name, 4)] * 2
    assert text.endswith("\n")
    assert not text.endswith("\r\n")


def test_table_has_a_line_a_picture_and_no_control_characters():
    lines = formatted("table", top_k=1).splitlines()
    labels = [line.split()[0] for line in lines]
    assert labels == [str(label) for label in CLASSES[:, 0]]
    assert [line.split()[1] for line in lines] == [
        f"{p:.2%}" for p in PROBABILITIES[:, 0]
    ]
    names = ["a.png", r"""'b,"c"\nd'""", r"'é\x1b[31m.npy'[0]", r"'é\x1b[31m.npy'[1]"]
    for line, name in zip(lines, [*names, r"'\udcff'"], strict=True):
        assert line.endswith(f"%  {name}")


def test_table_with_drawings():
    lines = formatted("table", drawing="blocks").splitlines()
    assert len(lines) == 5 * 8
    assert [line[:14].rstrip() for line in lines[:8]] == [
        *["      ██"] * 3,
        "█" * 14,
        *["      ██"] * 3,
        "",
    ]
    assert lines[0].endswith("  a.png")
    assert [line.split()[-2] for line in lines[1:4]] == list(map(str, CLASSES[0]))


def test_more_classes_than_the_drawing_has_lines():
    many = np.tile(np.arange(10), (5, 1))
    chances = np.full((5, 10), 0.1, np.float32)
    text = format_predictions("table", BATCH, many, chances, drawing="ascii")
    lines = text.splitlines()
    assert len(lines) == 5 * 12
    assert [line.split()[-2] for line in lines[1:11]] == list(map(str, range(10)))


@pytest.mark.parametrize(("drawing", "full"), [("blocks", "█"), ("ascii", "@")])
def test_drawings(drawing, full):
    assert draw_image(CROSS, drawing)[3] == full * 14
    assert {line[6:8] for line in draw_image(CROSS, drawing)} == {full * 2}
    colour = np.repeat(CROSS, 3, axis=2)
    assert draw_image(colour, drawing) == draw_image(CROSS, drawing)
    upper = np.zeros((14, 14, 1), np.uint8)
    upper[::2] = 255
    expected = {"blocks": "▀", "ascii": "+"}[drawing]
    assert draw_image(upper, drawing) == [expected * 14] * 7
    tiny = draw_image(np.full((3, 5, 1), 255, np.uint8), drawing)
    assert tiny == [full * 14] * 7
