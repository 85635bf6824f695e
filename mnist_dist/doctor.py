"""Proves a set-up before a long run: devices, libraries, disk, data, peers, speed.

It takes the flags of train that say where a run is to go, and looks in under a minute:
  python -m mnist_dist.doctor --model_dir=runs/mnist
  python -m mnist_dist.doctor --model_dir=runs/mnist --num_gpus=8 --format=json
Several workers, as each of them would train:
  python -m mnist_dist.launch --num_workers=2 --verb=doctor -- --model_dir=runs/mnist
  srun mnist-dist doctor --model_dir=runs/mnist

Nothing is trained and nothing stays behind. The chief prints a table, or JSON. Exit code
0 when nothing was found that would stop or slow a run; else 2, with what was found.
"""

import sys
from collections.abc import Sequence

from absl import flags

from mnist_dist.cli import doctor_flags, program, train_flags
from mnist_dist.cluster.membership import find_cluster
from mnist_dist.errors import EXIT_INPUT


def main(argv: Sequence[str]) -> int:
    """Examines what the flags say; returns the exit code."""
    del argv
    options = doctor_flags.options()
    cluster = find_cluster(**options.pick("worker_hosts task_index"))
    with program.quiet_imports():
        from mnist_dist.device.peers import leave_together
        from mnist_dist.diagnosis.diagnose import diagnose
        from mnist_dist.diagnosis.diagnosis import (
            format_json,
            format_table,
            is_healthy,
        )

    workers, strategy = diagnose(
        options, cluster, cluster_timeout=doctor_flags.cluster_timeout()
    )
    if cluster.is_chief or strategy is None:
        as_json = flags.FLAGS.format == "json"
        print(format_json(workers) if as_json else format_table(workers))
    sys.stdout.flush()  # before what may end the process at once
    code = 0 if is_healthy(workers) else EXIT_INPUT
    if strategy is not None:
        leave_together(strategy, code=code)
    return code


if __name__ == "__main__":
    flags.adopt_module_key_flags(train_flags)  # for --help to list them
    flags.adopt_module_key_flags(doctor_flags)
    program.run(main, leaves_at_once=True)
