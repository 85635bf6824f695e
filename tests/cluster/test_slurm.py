"""launch/slurm.sbatch: on a real Slurm, and quickly on a feigned one."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from disturbed_run import FLAGS, assert_same_training
from slurm_cluster import SlurmCluster, missing

from mnist_dist.run.checkpoints import list_checkpoints, load_arrays

ROOT = Path(__file__).parents[2]
SCRIPT = "launch/slurm.sbatch"


class Job:
    def __init__(self, slurm, run, *flags, restarts=20, nodes="n1,n2"):
        self.slurm, self.run, self.log = slurm, run, run.parent / "job.log"
        self.seen = 0  # the newest checkpoint that was waited for
        self.number = slurm.submit(
            *(f"--output={self.log}", f"--nodelist={nodes}"),
            SCRIPT,
            *FLAGS,
            *flags,
            cwd=ROOT,
            MODEL_DIR=str(run),
            MAX_RESTARTS=str(restarts),
            MNIST_DIST_VENV=sys.prefix,
        )

    def fields(self):
        return self.slurm.job(self.number)

    def newest(self):
        return max(list_checkpoints(str(self.run / "checkpoints")), default=0)

    def wait_for_checkpoint(self):
        """Returns when there is a newer one than the last that was waited for."""
        self.slurm.wait_until(lambda: self.newest() > self.seen, seconds=120)
        self.seen = self.newest()

    def wait_for_restart(self, number):
        """Returns when Slurm has restarted it so often."""
        self.slurm.wait_until(
            lambda: int(self.fields()["Restarts"]) >= number, seconds=120
        )
        self.seen = self.newest()

    def end(self):
        """Waits; returns the job's state, exit code and number of restarts."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.slurm.wait_until(lambda: self.fields()["JobState"] in ends, seconds=240)
        fields = self.fields()
        return fields["JobState"], fields["ExitCode"], int(fields["Restarts"])

    def weights(self):
        directory = str(self.run / "checkpoints")
        (step, *_) = list_checkpoints(directory)
        return load_arrays(f"{directory}/ckpt-{step}")


REQUEUE_EXITS = ["RequeueExit=143", "no RequeueExit"]


def signal_and_lose_a_node(slurm, run):
    job = Job(slurm, run, "--restore=none", "--overwrite", nodes="n3,n4")
    job.wait_for_checkpoint()
    slurm.command("scancel", "--signal=USR1", str(job.number))
    job.wait_for_restart(1)
    job.wait_for_checkpoint()
    slurm.kill_node("n4")
    job.wait_for_restart(2)
    slurm.start_node("n4")
    return job, job.end()


def signal_twice(slurm, run):
    job = Job(slurm, run, restarts=1)
    for restarts in range(2):
        job.wait_for_restart(restarts)
        job.wait_for_checkpoint()
        slurm.command("scancel", "--signal=USR1", str(job.number))
    return job, job.end()


def start_with_wrong_flags(slurm, run):
    job = Job(slurm, run, "--learning_rate=inf")
    return job, job.end()


STORIES = [
    ("RequeueExit=143", signal_and_lose_a_node),
    ("no RequeueExit", signal_twice),
    ("RequeueExit=143", start_with_wrong_flags),
    ("no RequeueExit", start_with_wrong_flags),
]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A function that gives a job and how it ended; all run at once, they mostly wait."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        clusters = {}
        for number, requeue_exit in enumerate(REQUEUE_EXITS):
            # Not below pytest's folder, which only root can enter: munge is another user.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
            clusters[requeue_exit] = SlurmCluster(
                Path(folder),
                number=number,
                requeue_exit=requeue_exit == "RequeueExit=143",
            )
            stack.callback(clusters[requeue_exit].close)
        pool = stack.enter_context(ThreadPoolExecutor(len(STORIES)))
        jobs = {
            (requeue_exit, story): pool.submit(
                story,
                clusters[requeue_exit],
                tmp_path_factory.mktemp(story.__name__) / "run",
            )
            for requeue_exit, story in STORIES
        }
        yield lambda requeue_exit, story: jobs[requeue_exit, story].result()


@pytest.mark.slow
def test_job_goes_on_after_usr1_and_after_a_lost_node_as_if_undisturbed(
    job, undisturbed
):
    disturbed, (state, code, restarts) = job("RequeueExit=143", signal_and_lose_a_node)
    log = disturbed.log.read_text()
    assert (state, code) == ("COMPLETED", "0:0"), log
    assert restarts >= 2  # a start on the lost node may fail once more
    # Each start adds an event file: none has overwritten the first.
    assert len(list((disturbed.run / "train").glob("*tfevents*"))) >= 3
    assert "Slurm: worker 0 of 2" in log
    assert "stopped by SIGUSR1 at step" in log
    assert_same_training(disturbed.weights(), undisturbed)


@pytest.mark.slow
def test_job_requeues_itself_where_slurm_does_not_and_restarts_have_an_end(job):
    signalled, end = job("no RequeueExit", signal_twice)
    log = signalled.log.read_text()
    assert end == ("FAILED", "1:0", 1), log
    steps = re.findall(r"stopped by SIGUSR1 at step ([\d,]+)", log)
    first, second = sorted({int(step.replace(",", "")) for step in steps})
    assert 100 <= first < second
    assert "stopped after 1 restarts" in log


@pytest.mark.slow
@pytest.mark.parametrize("requeue_exit", REQUEUE_EXITS)
def test_wrong_flags_are_not_tried_again(requeue_exit, job):
    wrong, end = job(requeue_exit, start_with_wrong_flags)
    assert end == ("FAILED", "2:0", 0), wrong.log.read_text()
    assert "--learning_rate: found inf, expected" in wrong.log.read_text()


SRUN = """#!/bin/sh
echo "of $MNIST_DIST_LAUNCH: $*"
for code in $TASK_CODES; do
  echo "srun: error: n1: task 0: Exited with exit code $code" >&2
  last=$code
done
exit $last
"""
# More than a pipe holds follows what is looked for.
SCONTROL = """#!/bin/sh
echo "$*" >>"$LOG"
echo "RequeueExit             = $REQUEUE_EXIT"
seq 100000
"""


@pytest.mark.parametrize(
    ("task_codes", "requeue_exit", "restarts", "expected", "is_requeued"),
    [
        ("0", "143", 0, 0, False),
        ("143 2 143", "143", 0, 2, False),
        ("143", "1,143", 0, 143, False),
        ("143", "(null)", 0, 0, True),
        ("143", "(null)", 20, 1, False),
    ],
)
def test_exit_code_of_the_job(
    tmp_path, task_codes, requeue_exit, restarts, expected, is_requeued
):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    result = subprocess.run(
        ["bash", ROOT / SCRIPT, "--train_steps=9"],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TASK_CODES": task_codes,
            "REQUEUE_EXIT": requeue_exit,
            "LOG": str(log),
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == expected, result.stderr
    # All starts of a job are of one launch.
    assert result.stdout.startswith("of slurm-7: ")
    assert "train --model_dir=runs/slurm --train_steps=9" in result.stdout
    assert ("requeue 7" in log.read_text()) is is_requeued
