"""launch/slurm.sbatch on a real Slurm of two nodes."""

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
reason = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(reason is not None, reason=str(reason)),
]


@pytest.fixture(scope="module", params=["RequeueExit=143", "no RequeueExit"])
def slurm(request):
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


def test_job_is_requeued_after_usr1_and_ends_as_one_process(
    slurm, one_process, tmp_path
):
    job = Job(slurm, tmp_path / "run")
    job.wait_for_checkpoint()
    slurm.command("scancel", "--signal=USR1", str(job.number))
    assert job.end() == ("COMPLETED", "0:0", 1), job.log.read_text()
    log = job.log.read_text()
    assert "stopped by SIGUSR1 at step" in log
    assert "Slurm: worker 0 of 2" in log
    assert_close(job.weights(), one_process)


def test_restarts_have_an_end(slurm, tmp_path):
    job = Job(slurm, tmp_path / "run", restarts=0)
    job.wait_for_checkpoint()
    slurm.command("scancel", "--signal=USR1", str(job.number))
    assert job.end() == ("FAILED", "1:0", 0), job.log.read_text()
    assert "stopped after 0 restarts" in job.log.read_text()


def test_wrong_flags_are_not_tried_again(slurm, tmp_path):
    job = Job(slurm, tmp_path / "run", "--global_batch_size=63")
    assert job.end() == ("FAILED", "2:0", 0), job.log.read_text()
    assert "expected a multiple of the 2 replicas" in job.log.read_text()


# A lost node is Slurm's to requeue, whatever RequeueExit says.
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
