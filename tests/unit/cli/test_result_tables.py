"""Facts and rows as text."""

import json
import math

from mnist_dist.cli.result_tables import format_results

RED = "\x1b[31mred\x9b\u202e"


def test_table_shows_names_of_others_escaped():
    rows = [{"layer": RED, "shape": [2, 3], "mean": math.nan, "step": None}]
    text = format_results("table", {"source": f"runs/{RED}"}, rows)
    assert all(line.isprintable() for line in text.splitlines())
    assert text.splitlines() == [
        r"source     runs/\x1b[31mred\x9b\u202e",
        "layer                  shape  mean  step",
        r"\x1b[31mred\x9b\u202e  2x3",
    ]


def test_json_reads_back():
    text = format_results("json", {"source": RED}, [{"layer": RED, "mean": math.nan}])
    assert text.isascii()
    assert json.loads(text) == {"source": RED, "rows": [{"layer": RED, "mean": None}]}
