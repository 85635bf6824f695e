"""Runs side by side, against files that are written by hand."""

import csv
import fcntl
import io
import json
import os

import pytest
from recorded_runs import write_run

from mnist_dist import InputError, compare_runs
from mnist_dist.reporting.tables import format_comparison


def test_figures_are_those_of_the_records(tmp_path):
    run = write_run(tmp_path / "run")
    (summary,) = compare_runs([str(run)]).runs
    assert (summary.state, summary.step, summary.total_steps) == ("done", 30, 30)
    assert (summary.best_accuracy, summary.best_step) == (0.75, 20)
    assert (summary.final_accuracy, summary.final_loss) == (0.625, 2 / 3)
    assert (summary.train_loss, summary.split) == (1 / 3, "test")
    assert summary.seconds == 12.0
    # 10 steps each at 100, 200 and 300 images a second: the harmonic mean.
    assert summary.images_per_second == pytest.approx(3 / (1 / 100 + 1 / 200 + 1 / 300))
    assert (summary.devices, summary.num_workers) == ("2 GPU", 1)
    assert summary.num_resumes == 0
    assert summary.command is None  # as of a run of an earlier version
    (run / "config.flags").write_text("--seed=1\n")
    (summary,) = compare_runs([str(run)]).runs
    assert summary.command == (
        f"mnist-dist train --flagfile={run}/config.flags --model_dir=NEW"
    )
    assert [r["step"] for r in summary.train] == [10, 20, 30]


def test_time_between_a_stop_and_the_next_start_is_none_of_the_run(tmp_path):
    # The last record before the second start came at 1008: 8 s, and 1 s after it.
    run = write_run(tmp_path / "run", starts=(1000.0, 1011.0))
    (summary,) = compare_runs([str(run)]).runs
    assert (summary.seconds, summary.num_resumes) == (9.0, 1)


@pytest.mark.parametrize(
    ("reason", "state", "told"),
    [
        ("all steps are done", "done", "all steps are done"),
        ("stopped by SIGTERM", "stopped", "stopped by SIGTERM"),
        ("failed: the disk is full", "failed", "the disk is full"),
        (None, "cut off", ""),
    ],
)
def test_how_it_ended(tmp_path, reason, state, told):
    write_run(tmp_path / "run", reason=reason)
    (summary,) = compare_runs([str(tmp_path / "run")]).runs
    assert (summary.state, summary.reason) == (state, told)


def test_run_that_is_being_written_is_running(tmp_path):
    run = write_run(tmp_path / "run", reason=None)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')  # the line that is being written
    with open(run / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (summary,) = compare_runs([str(run)]).runs
    assert (summary.state, summary.step, summary.problems) == ("running", 30, [])
    (summary,) = compare_runs([str(run)]).runs
    assert summary.state == "cut off"
    (problem,) = summary.problems
    assert problem.endswith(
        "1 of 7 lines are no records and are left out, the first is line 7"
    )


def test_options_that_differ_and_no_others(tmp_path):
    write_run(tmp_path / "a", flags={"learning_rate": 0.1, "model_dir": "x"})
    write_run(tmp_path / "b" / "c", flags={"learning_rate": 0.2, "model_dir": "y"})
    comparison = compare_runs([str(tmp_path)])
    assert [run.name for run in comparison.runs] == ["a", "b/c"]
    assert comparison.differing == ["learning_rate"]


def test_run_named_twice_is_there_once_and_one_in_a_run_is_not_its_own(tmp_path):
    run = write_run(tmp_path / "run")
    write_run(run / "export" / "copy")
    (tmp_path / "link").symlink_to(run)
    comparison = compare_runs([str(tmp_path), f"{run}/", str(tmp_path / "link")])
    assert [run.model_dir for run in comparison.runs] == [str(run)]


def test_what_is_no_run_is_one_line_and_the_others_are_shown(tmp_path):
    write_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"architectures": []}')
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_bytes(b"\x00\xff{")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "metrics.jsonl")
    names = ("good", "empty", "foreign", "damaged", "pipe", "none")
    comparison = compare_runs([str(tmp_path / name) for name in names])
    assert [run.model_dir for run in comparison.runs] == [str(tmp_path / "good")]
    assert len(comparison.left_out) == 5
    for name, line in zip(
        ("empty", "none", "foreign", "damaged", "pipe"),
        comparison.left_out,
        strict=True,
    ):
        assert f"{tmp_path}/{name}" in line
        assert "\n" not in line
        assert "found" in line or "expected" in line
    with pytest.raises(InputError, match=r"--model_dir: found no run: .*empty"):
        compare_runs([str(tmp_path / "empty")])
    with pytest.raises(
        InputError, match=r"none': found nothing there, expected a run or a folder of"
    ):
        compare_runs([str(tmp_path / "none")])


def test_unfinished_and_wrong_values_are_not_told(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    (summary,) = compare_runs([str(run)]).runs
    assert (summary.best_accuracy, summary.seconds, summary.step) == (None, None, 30)
    wrong = {
        "total_steps": "many", "devices": [7, None], "num_workers": 1e99,
        "starts": [3, {"step": 1}, {"step": 0, "time": "now"}], "ended": [1],
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps(config | {"resolved": wrong, "versions": 7})
    )
    record = {"kind": "train", "step": 10**30, "loss": "x", "images_per_second": 1}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    comparison = compare_runs([str(run)])
    (summary,) = comparison.runs
    assert (summary.total_steps, summary.num_workers, summary.num_resumes) == (
        None,
    ) * 3
    for output_format in ("table", "json", "csv", "markdown"):
        assert format_comparison(comparison, output_format)


def test_forms_agree(tmp_path):
    write_run(tmp_path / "a|b\n<i>", flags={"learning_rate": 0.1})
    write_run(
        tmp_path / "c", flags={"learning_rate": None}, reason="stopped by SIGTERM"
    )
    comparison = compare_runs([str(tmp_path)])
    as_json = json.loads(format_comparison(comparison, "json"))
    rows = list(csv.DictReader(io.StringIO(format_comparison(comparison, "csv"))))
    assert [row["name"] for row in rows] == ["a|b\n<i>", "c"]
    for row, run in zip(rows, as_json["runs"], strict=True):
        assert float(row["best_accuracy"]) == run["best_accuracy"] == 0.75
        assert row["option_learning_rate"] == str(run["options"]["learning_rate"] or "")
    table = format_comparison(comparison, "table").splitlines()
    assert len(table) == 3
    assert " ".join(table[0].split()) == (
        "run learning_rate best at step final loss steps time images/s devices "
        "resumed ended"
    )
    assert table[1].startswith("a|b\\n<i>  0.1 ")
    assert table[2].endswith("  2 GPU    0        stopped: stopped by SIGTERM")
    markdown = format_comparison(comparison, "markdown").splitlines()
    assert len(markdown) == 4
    assert markdown[2].startswith(
        "| a\\|b \\<i\\> | 0.1 | 75.00% | 20 | 62.50% | 0.6667 |"
    )


def test_cell_of_csv_is_no_formula(tmp_path):
    name = "=HYPERLINK(0)"
    write_run(tmp_path / name, flags={"model": "@SUM(1)", "learning_rate": -1.5})
    write_run(tmp_path / "b")
    text = format_comparison(compare_runs([str(tmp_path)]), "csv")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(text))}
    assert set(rows) == {f"'{name}", "b"}
    assert rows[f"'{name}"]["option_model"] == "'@SUM(1)"
    assert rows[f"'{name}"]["option_learning_rate"] == "-1.5"  # a number is a number
