"""Trains an image classifier; saves checkpoints, metrics and a SavedModel.

On all GPUs of this machine, or on its CPU if it has none:
  python -m mnist_dist.train --model_dir=runs/mnist
After a stop or a kill the same command goes on from the newest checkpoint.
Two replicas on a CPU, as in the tests:
  python -m mnist_dist.train --model_dir=runs/two --logical_cpus=2
Another data set; a preset; everything checked and printed without training:
  python -m mnist_dist.train --model_dir=runs/fashion --data_dir=FASHION_MNIST
  python -m mnist_dist.train --model_dir=runs/mlp --flagfile=launch/recipes/seed_mlp.flags
  python -m mnist_dist.train --model_dir=runs/mnist --dry_run
Several workers are started by `launch`, Slurm or Kubernetes; or by hand, one on each host:
  python -m mnist_dist.train --model_dir=runs/mnist --worker_hosts=A:2222,B:2222 --task_index=0
  python -m mnist_dist.train --model_dir=runs/mnist --worker_hosts=A:2222,B:2222 --task_index=1
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from mnist_dist.cli import program, train_flags
from mnist_dist.cli.module_path import interpreter_flags
from mnist_dist.cli.standard_streams import ignore_write_errors
from mnist_dist.cluster.membership import EVALUATOR_SINCE, Cluster, find_evaluator
from mnist_dist.errors import EXIT_STOPPED
from mnist_dist.training.train_model import train_model


def main(argv: Sequence[str]) -> int:
    """Trains as the flags say; returns the exit code."""
    del argv
    given = train_flags.given()
    if evaluator := find_evaluator():
        become_evaluator(evaluator)
    result = train_model(**given)
    return 0 if result.ended else EXIT_STOPPED


def become_evaluator(cluster: Cluster) -> NoReturn:
    """Goes on as `evaluate --watch` on this run, in this process."""
    options = train_flags.TrainingOptions(**train_flags.given())
    print(cluster.describe(), flush=True)
    given = [
        f"--{name}={value}"
        for name, value in options.pick("model_dir data_dir num_gpus").items()
        if value is not None
    ]
    if ":" in str(options.model):  # it may lie in the working directory
        given.append(f"--model={options.model}")
    command = [sys.executable, *interpreter_flags()]
    command += ["-m", "mnist_dist.evaluate", "--watch", *given]
    os.environ[EVALUATOR_SINCE] = str(time.time())
    os.execv(sys.executable, command)


if __name__ == "__main__":
    flags.adopt_module_key_flags(train_flags)  # for --help to list them
    ignore_write_errors("stdout")
    program.run(main, leaves_at_once=True)
