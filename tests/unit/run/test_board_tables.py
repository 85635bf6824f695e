"""Tables of texts, as TensorBoard itself shows them."""

import html
import re

import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from mnist_dist.run.board_tables import create_table


@pytest.mark.parametrize(
    "text",
    ["a|b", "`x`", "a``b|c", "`|`", "<b>&amp;", "\\|", "x\\", "*a* _b_", "[a](b)"],
)
def test_text_in_a_cell_shows_as_it_is(text):
    table = create_table(["name", "value"], [(text, 1), ("last", text)])
    shown = re.findall("<td>(.*?)</td>", markdown_to_safe_html(table), re.DOTALL)
    cells = [html.unescape(re.sub("</?code>", "", cell)) for cell in shown]
    assert cells == [text, "1", "last", text]


def test_text_of_several_lines_stays_in_its_cell():
    assert create_table(["name"], [("a\nb",), ("",)]).splitlines()[2:] == [
        "| `a\\nb` |",
        "|  |",
    ]
