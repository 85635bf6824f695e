"""launch/slurm.sbatch: on a real Slurm, and quickly on a feigned one."""

import contextlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from disturbed_run import FLAGS, assert_same_training
from slurm_cluster import SlurmCluster, missing

from mnist_dist.run.checkpoints import list_checkpoints, load_arrays

ROOT = Path(__file__).parents[2]
SCRIPT = "launch/slurm.sbatch"


class Job:
    def __init__(self, slurm, run, *flags, restarts=20, nodes="n1,n2", option=None):
        self.slurm, self.run, self.log = slurm, run, run.parent / "job.log"
        self.seen = 0  # the newest checkpoint that was waited for
        self.number = slurm.submit(
            *(f"--output={self.log}", f"--nodelist={nodes}"),
            *([option] if option else []),
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


def export_few_variables_and_a_wrong_flag(slurm, run):
    exported = f"--export=MODEL_DIR={run},MNIST_DIST_VENV={sys.prefix}"
    job = Job(slurm, run, "--learning_rate=inf", option=exported)
    return job, job.end()


def start_array_with_a_wrong_flag(slurm, run):
    job = Job(slurm, run, "--learning_rate=-$SLURM_ARRAY_TASK_ID", option="--array=7")
    return job, job.end()


STORIES = [
    ("RequeueExit=143", signal_and_lose_a_node),
    ("no RequeueExit", signal_twice),
    ("RequeueExit=143", export_few_variables_and_a_wrong_flag),
    ("no RequeueExit", start_array_with_a_wrong_flag),
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
    number = signalled.number
    assert f"job {number} (mnist_dist), restart 0 of at most 1, 20" in log
    assert f"job {number} (mnist_dist), restart 1 of at most 1, 20" in log
    assert log.count(", on n[1-2]\n") == 2
    assert "exit code 143; stopped after 1 restarts" in log
    assert "time limit was" not in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("requeue_exit", "story", "error"),
    [
        ("RequeueExit=143", export_few_variables_and_a_wrong_flag, ": found inf,"),
        ("no RequeueExit", start_array_with_a_wrong_flag, "=-7: -7.0 is not"),
    ],
)
def test_wrong_flags_are_not_tried_again(requeue_exit, story, error, job):
    wrong, end = job(requeue_exit, story)
    assert end == ("FAILED", "2:0", 0), wrong.log.read_text()
    assert f"--learning_rate{error}" in wrong.log.read_text()


SRUN = """#!/bin/sh
echo "of $MNIST_DIST_LAUNCH, exports $SLURM_EXPORT_ENV: $*"
if [ -n "$ERROR" ]; then echo "$ERROR" >&2; fi
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
echo "   StartTime=2026-01-02T03:04:05 EndTime=${END_TIME:-Unknown} Deadline=N/A"
seq 100000
"""


def run_script(folder, *flags, is_installed=True, **environ):
    """Runs the script in `folder`, on a feigned Slurm."""
    programs = {"srun": SRUN, "scontrol": SCONTROL}
    if is_installed:
        programs["mnist-dist"] = "#!/bin/sh\n"
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "log").touch()
    job = {"SLURM_JOB_ID": "7", "TASK_CODES": "0", "LOG": str(folder / "log")}
    return subprocess.run(
        ["bash", ROOT / SCRIPT, *flags],
        cwd=folder,
        env={"PATH": f"{folder}:/usr/bin:/bin", **job, **environ},
        capture_output=True,
        text=True,
    )


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
    result = run_script(
        tmp_path,
        "--train_steps=9",
        TASK_CODES=task_codes,
        REQUEUE_EXIT=requeue_exit,
        SLURM_RESTART_COUNT=str(restarts),
    )
    assert result.returncode == expected, result.stderr
    # All starts of a job are of one launch.
    assert result.stdout.startswith("of slurm-7, exports ALL: ")
    assert "train --model_dir=runs/slurm --train_steps=9" in result.stdout
    assert ("requeue 7" in (tmp_path / "log").read_text()) is is_requeued


def test_start_names_job_restart_time_and_nodes(tmp_path):
    result = run_script(
        tmp_path,
        SLURM_RESTART_COUNT="3",
        MAX_RESTARTS="9",
        SLURM_JOB_NAME="digits",
        SLURM_JOB_NODELIST="n[1-2]",
    )
    assert re.match(
        r"slurm\.sbatch: job 7 \(digits\), restart 3 of at most 9, "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+, on n\[1-2\]\n",
        result.stderr,
    )


def test_end_says_that_time_was_up_and_how_to_go_on(tmp_path):
    def end(seconds_left):
        end_time = datetime.now() + timedelta(seconds=seconds_left)
        return run_script(
            tmp_path,
            TASK_CODES="143",
            REQUEUE_EXIT="143",
            SLURM_RESTART_COUNT="2",
            MAX_RESTARTS="2",
            END_TIME=end_time.isoformat(timespec="seconds"),
        ).stderr

    assert (
        "the time limit was reached; stopped after 2 restarts (MAX_RESTARTS=2). Submit "
        "the job again, without --overwrite and --restore, and runs/slurm goes on from "
        "its newest checkpoint\n"
    ) in end(100)
    assert "exit code 143; stopped after 2 restarts" in end(1000)


@pytest.mark.parametrize(
    ("model_dir", "expected"),
    [(None, "runs/slurm/12"), ("a b", "a b/12"), ("s$SLURM_ARRAY_TASK_ID/x", "s12/x")],
)
def test_each_task_of_an_array_is_a_run_with_its_own_flags(
    tmp_path, model_dir, expected
):
    environ = {"MODEL_DIR": model_dir} if model_dir else {}
    flags = ["--seed=$SLURM_ARRAY_TASK_ID", "--model=mlp"]
    result = run_script(tmp_path, *flags, SLURM_ARRAY_TASK_ID="12", **environ)
    assert f"train --model_dir={expected} --seed=12 --model=mlp\n" in result.stdout


def test_job_from_another_directory_says_from_where_to_submit(tmp_path):
    result = run_script(tmp_path, is_installed=False)
    assert result.returncode == 2
    assert f"found no mnist-dist in {tmp_path}/.venv/bin nor on PATH" in result.stderr
    assert "Submit from the top of the checkout" in result.stderr
    assert result.stdout == ""


def test_node_that_does_not_see_the_program_is_told_from_wrong_flags(tmp_path):
    error = "slurmstepd: error: execve(): mnist-dist: No such file or directory"
    result = run_script(tmp_path, TASK_CODES="2", ERROR=error)
    assert result.returncode == 2
    assert "a node has no mnist-dist in" in result.stderr
    assert f"from which the job is submitted, {tmp_path}" in result.stderr
