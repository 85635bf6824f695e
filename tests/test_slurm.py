"""launch/slurm.sbatch: on a real Slurm of two nodes, and quickly on a feigned one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from slurm_cluster import SlurmCluster, missing

from mnist_dist.checkpoints import list_checkpoints, load_arrays

ROOT = Path(__file__).parent.parent
SCRIPT = "launch/slurm.sbatch"
FLAGS = [
    "--model=mlp",
    "--train_steps=2000",
    "--learning_rate=5e-4",
    "--global_batch_size=64",
    "--checkpoint_interval=100",
    "--summary_interval=100",
    "--eval_interval=1000",
    "--noexport",
]


@pytest.fixture(scope="module", params=["RequeueExit=143", "no RequeueExit"])
def slurm(request):
    if reason := missing():
        pytest.skip(reason)
    # Not below pytest's folder, which only root can enter: munge is another user.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = SlurmCluster(
            Path(folder), requeue_exit=request.param == "RequeueExit=143"
        )
        yield cluster
        cluster.close()


class Job:
    def __init__(self, slurm, run, *flags, restarts=20):
        self.slurm, self.run, self.log = slurm, run, run.parent / "job.log"
        self.number = slurm.submit(
            f"--output={self.log}",
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


def assert_close(found, expected):
    assert found["step"] == expected["step"] == 2000
    for name, array in expected.items():
        if name.startswith(("model/", "ema/")):
            np.testing.assert_allclose(
                found[name], array, rtol=1e-3, atol=1e-4, err_msg=name
            )


@pytest.fixture(scope="module")
def one_process(fork_server, tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    process = fork_server.start("mnist_dist.train", f"--model_dir={run}", *FLAGS)
    assert process.wait() == 0, process.stderr()
    return load_arrays(f"{run}/checkpoints/ckpt-2000")


@pytest.mark.slow
def test_job_is_requeued_after_usr1_and_ends_as_one_process(
    slurm, one_process, tmp_path
):
    job = Job(slurm, tmp_path / "run", "--restore=none", "--overwrite")
    job.wait_for_checkpoint()
    slurm.command("scancel", "--signal=USR1", str(job.number))
    assert job.end() == ("COMPLETED", "0:0", 1), job.log.read_text()
    # Each start adds an event file: the second has not overwritten the first.
    assert len(list((tmp_path / "run" / "train").glob("*tfevents*"))) == 2
    log = job.log.read_text()
    assert "stopped by SIGUSR1 at step" in log
    assert "Slurm: worker 0 of 2" in log
    assert_close(job.weights(), one_process)


@pytest.mark.slow
def test_restarts_have_an_end(slurm, tmp_path):
    job = Job(slurm, tmp_path / "run", restarts=0)
    job.wait_for_checkpoint()
    slurm.command("scancel", "--signal=USR1", str(job.number))
    assert job.end() == ("FAILED", "1:0", 0), job.log.read_text()
    assert "stopped after 0 restarts" in job.log.read_text()


@pytest.mark.slow
def test_wrong_flags_are_not_tried_again(slurm, tmp_path):
    job = Job(slurm, tmp_path / "run", "--global_batch_size=63")
    assert job.end() == ("FAILED", "2:0", 0), job.log.read_text()
    assert "expected a multiple of the 2 replicas" in job.log.read_text()


# A lost node is Slurm's to requeue, whatever RequeueExit says.
@pytest.mark.slow
@pytest.mark.parametrize("slurm", ["RequeueExit=143"], indirect=True)
def test_run_survives_a_node_that_is_lost(slurm, one_process, tmp_path):
    job = Job(slurm, tmp_path / "run")
    job.wait_for_checkpoint()
    slurm.kill_node("n2")
    slurm.wait_until(
        lambda: (
            job.fields()["JobState"] != "RUNNING" or job.fields()["Restarts"] != "0"
        ),
        seconds=120,
    )
    slurm.start_node("n2")
    state, code, restarts = job.end()
    assert (state, code) == ("COMPLETED", "0:0"), job.log.read_text()
    assert restarts >= 1
    assert_close(job.weights(), one_process)


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
