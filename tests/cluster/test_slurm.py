"""launch/slurm.sbatch: on a real Slurm, and quickly on a feigned one."""

import contextlib
import os
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
AT_ONCE = 4  # jobs; more, and they wait for processors


class Job:
    def __init__(self, slurm, run, *flags, restarts=20, nodes="n1,n2"):
        self.slurm, self.run, self.log = slurm, run, run.parent / "job.log"
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

    def wait_for_checkpoint(self):
        directory = str(self.run / "checkpoints")
        self.slurm.wait_until(lambda: list_checkpoints(directory), seconds=120)

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


def signal_once(slurm, run):
    job = Job(slurm, run, "--restore=none", "--overwrite")
    job.wait_for_checkpoint()
    slurm.command("scancel", "--signal=USR1", str(job.number))
    return job, job.end()


def signal_without_restarts(slurm, run):
    job = Job(slurm, run, restarts=0)
    job.wait_for_checkpoint()
    slurm.command("scancel", "--signal=USR1", str(job.number))
    return job, job.end()


def start_with_wrong_flags(slurm, run):
    job = Job(slurm, run, "--global_batch_size=63")
    return job, job.end()


def lose_a_node(slurm, run):
    job = Job(slurm, run, nodes="n3,n4")
    job.wait_for_checkpoint()
    slurm.kill_node("n4")
    slurm.wait_until(
        lambda: (
            job.fields()["JobState"] != "RUNNING" or job.fields()["Restarts"] != "0"
        ),
        seconds=120,
    )
    slurm.start_node("n4")
    return job, job.end()


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
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        stories = [("RequeueExit=143", lose_a_node)]
        stories += [
            (requeue_exit, story)
            for story in (signal_once, signal_without_restarts, start_with_wrong_flags)
            for requeue_exit in REQUEUE_EXITS
        ]
        jobs = {
            (requeue_exit, story): pool.submit(
                story,
                clusters[requeue_exit],
                tmp_path_factory.mktemp(story.__name__) / "run",
            )
            for requeue_exit, story in stories
        }
        yield lambda requeue_exit, story: jobs[requeue_exit, story].result()


@pytest.mark.slow
@pytest.mark.parametrize("requeue_exit", REQUEUE_EXITS)
def test_job_is_requeued_after_usr1_and_ends_as_if_undisturbed(
    requeue_exit, job, undisturbed
):
    signalled, end = job(requeue_exit, signal_once)
    log = signalled.log.read_text()
    assert end == ("COMPLETED", "0:0", 1), log
    # Each start adds an event file: the second has not overwritten the first.
    assert len(list((signalled.run / "train").glob("*tfevents*"))) == 2
    assert "stopped by SIGUSR1 at step" in log
    assert "Slurm: worker 0 of 2" in log
    assert_same_training(signalled.weights(), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("requeue_exit", REQUEUE_EXITS)
def test_restarts_have_an_end(requeue_exit, job):
    signalled, end = job(requeue_exit, signal_without_restarts)
    assert end == ("FAILED", "1:0", 0), signalled.log.read_text()
    assert "stopped after 0 restarts" in signalled.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("requeue_exit", REQUEUE_EXITS)
def test_wrong_flags_are_not_tried_again(requeue_exit, job):
    wrong, end = job(requeue_exit, start_with_wrong_flags)
    assert end == ("FAILED", "2:0", 0), wrong.log.read_text()
    assert "expected a multiple of the 2 replicas" in wrong.log.read_text()


# A lost node is Slurm's to requeue, whatever RequeueExit says.
@pytest.mark.slow
def test_run_survives_a_node_that_is_lost(job, undisturbed):
    survivor, (state, code, restarts) = job("RequeueExit=143", lose_a_node)
    assert (state, code) == ("COMPLETED", "0:0"), survivor.log.read_text()
    assert restarts >= 1
    assert_same_training(survivor.weights(), undisturbed)


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
