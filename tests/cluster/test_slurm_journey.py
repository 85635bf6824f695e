"""A person on a Slurm cluster types what clusters.md says; the Slurm is real."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, missing
from small_mnist import small_mnist
from tensorboard.backend.event_processing import plugin_event_multiplexer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clusters.md").read_text()
# What keeps the trainings of the page short here.
SHORT = f"--data_dir={small_mnist()} --model=mlp --global_batch_size=32 --noexport --enable_xla=off"
# A model that takes its time and no processor's: each step lasts 0.1 s at least.
SLOW = """
import time
import keras
import numpy as np
import tensorflow as tf

class Wait(keras.layers.Layer):
    def call(self, images):
        wait = tf.numpy_function(lambda: np.float32(time.sleep(0.1) or 0), [], tf.float32)
        with tf.control_dependencies([wait]):
            return tf.identity(images)

def create(*, image_shape, num_classes):
    return keras.Sequential([keras.Input(image_shape), Wait(), keras.layers.Flatten(),
                             keras.layers.Dense(num_classes, name="head")])
"""


class Person:
    """Types in a checkout: `launch/` and `.venv` are there, and runs are written."""

    def __init__(self, slurm, folder):
        self.slurm, self.folder = slurm, folder
        (folder / "launch").symlink_to(ROOT / "launch")
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "slow.py").write_text(SLOW)

    def types(self, line):
        """Runs a line of shell; returns what it prints on both streams."""
        paths = [str(self.folder), os.environ.get("PYTHONPATH", "")]
        result = subprocess.run(
            ["bash", "-c", line],
            env={
                **self.slurm.environ,
                "PATH": f"{self.folder}/.venv/bin:{self.slurm.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=240,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    def submits(self, line):
        """Types a line with sbatch; returns the job's log when the job is over."""
        log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        log.touch()
        line = line.replace("sbatch ", f"sbatch --output={log} --parsable ", 1)
        number = self.types(line).strip()
        self.slurm.wait_until(
            lambda: not self.slurm.command("squeue", "-h", "-j", number, check=False),
            seconds=240,
        )
        return log.read_text()


def typed_in(page, beginning):
    """The line of the page that begins so."""
    (line,) = [line for line in page.splitlines() if line.startswith(beginning)]
    return line


def train_three_seeds(person):
    line = typed_in(PAGE, "MODEL_DIR=runs/seeds sbatch")
    line = line.replace("--array", "--nodes=1 --array")
    line = line.replace("--train_epochs=5", f"--train_steps=40 {SHORT}")
    return person.submits(line), person.types(
        "mnist-dist report --model_dir=runs/seeds --format=json"
    )


def reach_the_time_limit(person):
    command = (
        "MODEL_DIR=runs/slow {} sbatch --nodes=1 {} launch/slurm.sbatch --model=slow:create "
        f"--train_steps={{}} --data_dir={small_mnist()} --noexport --lr_schedule=constant"
    )
    for _ in range(4):  # on a busy machine the signal may come before the first step
        ended = person.submits(command.format("MAX_RESTARTS=0", "--time=1", 100_000))
        said = re.findall(r"stopped by SIGUSR1 at step ([\d,]+)", ended)
        if step := int(said[0].replace(",", "")) if said else 0:
            break
    return ended, step, person.submits(command.format("", "", step + 2))


def work_in_an_allocation(person):
    alone = (
        f"mnist-dist train --model_dir=runs/alone --train_steps=20 {SHORT} --dry_run"
    )
    together = typed_in(PAGE, "srun --ntasks-per-node=1") + f" --train_steps=20 {SHORT}"
    return person.types(
        f"{typed_in(PAGE, 'salloc --nodes=2')} bash -c {shlex.quote(f'{alone}; {together}')}"
    )


STORIES = (train_three_seeds, reach_the_time_limit, work_in_an_allocation)


@pytest.fixture(scope="module")
def stories():
    """What came of each story, by its function; all at once, for they mostly wait."""
    if reason := missing():
        pytest.skip(reason)
    # Not below pytest's folder, which only root can enter: munge is another user.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        slurm = SlurmCluster(Path(folder), number=2)
        checkout = Path(tempfile.mkdtemp(prefix="checkout-", dir=folder))
        person = Person(slurm, checkout)
        try:
            with ThreadPoolExecutor(len(STORIES)) as pool:
                found = {story: pool.submit(story, person) for story in STORIES}
            yield checkout, lambda story: found[story].result()
        finally:
            slurm.close()


@pytest.mark.slow
def test_three_seeds_of_an_array_are_compared_in_one_tensorboard(stories):
    folder, result = stories
    log, report = result(train_three_seeds)
    assert log.count("restart 0 of at most 20") == 3, log
    runs = json.loads(report)["runs"]
    assert [run["options"]["seed"] for run in runs] == [1, 2, 3]
    assert len({run["final_accuracy"] for run in runs}) > 1
    # As `tensorboard --logdir=runs/seeds` finds them.
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder / "runs/seeds"))
    multiplexer.Reload()
    curves = multiplexer.PluginRunToTagToContent("scalars")
    for seed in (1, 2, 3):
        assert {"loss", "accuracy"} <= curves[f"{seed}/train"].keys()
        assert {"loss", "accuracy"} <= curves[f"{seed}/eval"].keys()


@pytest.mark.slow
def test_job_saves_before_its_time_limit_says_so_and_goes_on(stories):
    ended, step, again = stories[1](reach_the_time_limit)
    assert (
        "the time limit was reached; stopped after 0 restarts (MAX_RESTARTS=0)" in ended
    )
    assert "runs/slow goes on from its newest checkpoint" in ended
    assert f"goes on from   runs/slow/checkpoints/ckpt-{step} (step {step:,}" in again


@pytest.mark.slow
def test_allocation_of_salloc_trains_alone_with_a_hint_and_with_srun_on_both(stories):
    printed = stories[1](work_in_an_allocation)
    hint = "Slurm has allocated 2 nodes, to use them all: srun --ntasks-per-node=1"
    assert printed.count(hint) == 1, printed  # of the one that was started without
    assert "Slurm: worker 0 of 2" in printed
    assert "MultiWorkerMirroredStrategy, 2 replicas" in printed
