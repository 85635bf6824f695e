"""The page of `report --output`, in a real browser, of runs that were really trained."""

import base64
import json
import re
import time

import pytest
from browser import open_browser, prefer_colors
from run_factory import create_run, save_data_set
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from small_mnist import small_mnist

NAME = "<b>&'mlp'"  # what HTML would read as its own
TRAIN = (
    *(f"--data_dir={small_mnist()}", "--model=mlp", "--global_batch_size=32"),
    *("--noaugment", "--enable_xla=off", "--noexport", "--noprogress"),
    *("--summary_interval=5", "--eval_interval=20", "--checkpoint_interval=20"),
)


@pytest.fixture(scope="module")
def report(fork_server):
    def report(*flags):
        process = fork_server.start("mnist_dist.report", *flags)
        process.wait()
        return process

    return report


@pytest.fixture(scope="module")
def folder(fork_server, report, tmp_path_factory):
    """Two runs, one whose weights cannot be evaluated, and the page about them."""
    folder = tmp_path_factory.mktemp("runs")
    training = fork_server.start(
        "mnist_dist.train", f"--model_dir={folder}/{NAME}", *TRAIN, "--train_steps=60"
    )
    data = save_data_set(folder.parent / "gone")
    create_run(folder / "other", data_dir=data)
    (data / "mnist.npz").unlink()
    assert training.wait() == 0, training.stderr()
    process = report(f"--model_dir={folder}", f"--output={folder}/page.html")
    assert (process.wait(), process.stderr()) == (0, "")
    assert process.stdout().startswith("run ")
    return folder


@pytest.fixture(scope="module")
def browser(folder):
    with open_browser(height=2400) as browser:
        browser.get((folder / "page.html").as_uri())
        yield browser


def texts(browser, selector):
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, selector)]


def test_page_has_no_error_and_needs_no_network(browser):
    assert browser.get_log("browser") == []
    used = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in used if not name.startswith("data:")] == []


def test_table_and_curves_show_what_was_recorded(folder, browser):
    lines = (folder / NAME / "metrics.jsonl").read_text().splitlines()
    records = list(map(json.loads, lines))
    table = browser.find_element(By.TAG_NAME, "table").text
    assert NAME in table
    shown = browser.execute_script(
        "return document.querySelector('.js-plotly-plot').data.map("
        "t => [t.name, t.yaxis || 'y', Array.from(t.x), Array.from(t.y)])"
    )
    curves = {(name, axis): list(zip(x, y, strict=True)) for name, axis, x, y in shown}
    name = NAME.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    name = name.replace("'", "&#x27;")
    for axis, key in (("y", "accuracy"), ("y2", "loss")):
        for label, kind in (("training", "train"), ("evaluation", "eval")):
            assert curves[f"{name}, {label}", axis] == [
                (r["step"], pytest.approx(r[key], rel=1e-12))
                for r in records
                if r["kind"] == kind
            ]
    assert f"{NAME}, training" in texts(browser, ".legendtext")


def test_value_is_told_under_the_pointer(browser):
    chart = browser.find_element(By.CSS_SELECTOR, ".js-plotly-plot .nsewdrag")
    ActionChains(browser).move_to_element(chart).perform()
    deadline = time.monotonic() + 10
    while not (told := texts(browser, ".hoverlayer text")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    name = f"{NAME}, evaluation : "
    assert any(re.fullmatch(rf"{re.escape(name)}\d+\.\d\d%", text) for text in told)


def test_mistakes_and_confusion_are_those_of_the_best_weights(folder, browser):
    lines = (folder / NAME / "metrics.jsonl").read_text().splitlines()
    best = max(r["accuracy"] for r in map(json.loads, lines) if r["kind"] == "eval")
    rows = texts(browser, ".confusion tr")[1:]
    counts = [
        [
            int(cell.text.replace(",", "") or 0)
            for cell in row.find_elements(By.TAG_NAME, "td")[:-1]
        ]
        for row in browser.find_elements(By.CSS_SELECTOR, ".confusion tr")[1:]
    ]
    assert len(rows) == 10
    right = sum(counts[i][i] for i in range(10))
    assert sum(map(sum, counts)) == 1_000
    assert right / 1_000 == best
    widths = browser.execute_script(
        "return Array.from(document.querySelectorAll('.mistakes img')).map("
        "i => i.naturalWidth)"
    )
    assert widths == [28] * min(36, 1_000 - right)


def test_run_that_cannot_be_evaluated_says_why(folder, browser):
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "It could not be evaluated: " in text
    assert "gone" in text.split("It could not be evaluated: ")[1].splitlines()[0]


def test_page_is_legible_in_the_dark_and_on_paper(browser):
    def colors():
        return browser.execute_script(
            "const s = getComputedStyle(document.body);"
            "const t = getComputedStyle(document.querySelector('.xtick text'));"
            "return [s.color, s.backgroundColor, t.fill]"
        )

    def brightness(color):
        return sum(int(part) for part in color[4:-1].split(","))

    prefer_colors(browser, "light")
    text, back, tick = map(brightness, colors())
    assert back - text > 500
    assert back - tick > 500
    prefer_colors(browser, "dark")
    text, back, tick = map(brightness, colors())
    assert text - back > 500
    assert tick - back > 500
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("page.txt", "--output: found 'page.txt', expected the name of a page"),
        ("none/page.html", "--output: found no folder 'none' to write to"),
    ],
)
def test_output_that_cannot_be_is_refused_before_anything_is_read(
    output, message, report
):
    process = report("--model_dir=none", f"--output={output}")
    assert process.wait() == 2
    assert process.stderr().startswith(f"report: error: {message}")


def test_missing_libraries_are_named(fork_server):
    program = (
        "import sys, runpy\n"
        "sys.modules['plotly'] = None\n"
        "sys.argv = ['report', '--model_dir=none', '--output=page.html']\n"
        "runpy.run_module('mnist_dist.report', run_name='__main__', alter_sys=True)\n"
    )
    process = fork_server.start("-c", program)
    assert process.wait() == 2, process.stderr()
    assert "--output: found no plotly, with which the page is" in process.stderr()
    assert "pip install 'mnist_dist[report]'" in process.stderr()
