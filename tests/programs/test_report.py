"""`report` as its user runs it, on runs that were really trained."""

import json
import signal
import subprocess
import sys

import pytest
from recorded_runs import write_run
from small_mnist import small_mnist

TRAIN = (
    f"--data_dir={small_mnist()}",
    "--model=mlp",
    "--global_batch_size=32",
    "--noaugment",
    "--enable_xla=off",
    "--train_steps=40",
    "--eval_interval=20",
    "--checkpoint_interval=20",
    "--summary_interval=10",
    "--noexport",
    "--noprogress",
)


@pytest.fixture(scope="module")
def runs(fork_server, tmp_path_factory):
    """A run that was killed and went on; one that failed."""
    folder = tmp_path_factory.mktemp("runs")
    killed = folder / "killed"
    flags = (*TRAIN, f"--model_dir={killed}")
    process = fork_server.start("mnist_dist.train", *flags, "--train_steps=1000000")
    process.wait_for(killed / "checkpoints" / "ckpt-40.index")
    process.kill(signal.SIGKILL)
    process.wait()
    step = max(int(p.stem[5:]) for p in killed.glob("checkpoints/ckpt-*.index"))
    again = fork_server.start("mnist_dist.train", *flags, f"--train_steps={step + 20}")
    failed = fork_server.start(
        "mnist_dist.train", *TRAIN, f"--model_dir={folder}/failed",
        "--learning_rate=1e38", "--max_nonfinite_steps=5", "--optimizer=sgd",
    )  # fmt: skip
    assert again.wait() == 0, again.stderr()
    assert failed.wait() == 1, failed.stdout()
    return folder, step + 20


def report(*flags, check=True):
    return subprocess.run(
        [sys.executable, "-m", "mnist_dist.report", *flags],
        capture_output=True,
        text=True,
        check=check,
    )


def test_trained_runs_are_told_of(runs):
    folder, last_step = runs
    before = sorted(p.stat().st_mtime_ns for p in folder.rglob("*"))
    result = report(f"--model_dir={folder}", "--format=json")
    assert result.stderr == ""
    by_name = {run["name"]: run for run in json.loads(result.stdout)["runs"]}
    killed, failed = by_name["killed"], by_name["failed"]
    assert (killed["state"], killed["num_resumes"]) == ("done", 1)
    assert (killed["step"], killed["total_steps"]) == (last_step, last_step)
    lines = (folder / "killed" / "metrics.jsonl").read_text().splitlines()
    evaluations = [r for r in map(json.loads, lines) if r["kind"] == "eval"]
    assert killed["final_accuracy"] == evaluations[-1]["accuracy"]
    assert killed["best_accuracy"] == max(r["accuracy"] for r in evaluations)
    assert killed["devices"] == "1 CPU"
    assert 0 < killed["seconds"] < 300
    assert failed["state"] == "failed"
    assert "were skipped, their loss or gradients were not finite" in failed["reason"]
    assert failed["num_resumes"] == 0
    # Nothing was written into a run.
    assert sorted(p.stat().st_mtime_ns for p in folder.rglob("*")) == before


def test_report_imports_no_tensorflow(tmp_path):
    write_run(tmp_path / "run")
    program = (
        "import sys, mnist_dist\n"
        f"comparison = mnist_dist.compare_runs([{str(tmp_path)!r}])\n"
        "from mnist_dist import report\n"
        "from mnist_dist.reporting.tables import FORMATS, format_comparison\n"
        "for name in FORMATS: format_comparison(comparison, name)\n"
        "assert not {'tensorflow', 'keras'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_damage_is_one_line_and_the_others_are_shown(tmp_path):
    write_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{\x1b[31m")
    result = report(f"--model_dir={tmp_path}")
    assert result.stdout.splitlines()[1].startswith("good ")
    (line,) = result.stderr.splitlines()
    assert line.startswith("report: warning: left out: ")
    assert "bad/config.json" in line
    assert "\x1b" not in line
    (tmp_path / "good" / "config.json").unlink()
    (tmp_path / "good" / "metrics.jsonl").unlink()
    result = report(f"--model_dir={tmp_path}", check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
