"""Starts several workers of `train` on this host, and restarts all if one fails.

  mnist-dist launch --num_workers=2 -- --model_dir=runs/two
  mnist-dist launch --num_workers=2 --verb=doctor -- --model_dir=runs/two
  mnist-dist launch --num_workers=2 --max_restarts=3 -- --model_dir=runs/two

Several hosts by hand: the same command on each, with its own --node_rank:
  mnist-dist launch --num_workers=4 --nnodes=2 --node_rank=0 --master_addr=HOST0 -- ...
  mnist-dist launch --num_workers=4 --nnodes=2 --node_rank=1 --master_addr=HOST0 -- ...

Each line of output begins with the worker's rank and is kept in MODEL_DIR/logs/. When a
worker fails, all are stopped and started again, at most --max_restarts times. They go on
from the newest checkpoint. A worker that ends with exit code 2 (wrong input) is not started
again. If the launch fails, the last words of the worker that failed first are printed, and
its exit code is returned. When the launcher ends, for whatever reason, its workers end.
"""

import errno
import functools
import os
import secrets
import socket
import sys
import uuid
from collections.abc import Sequence

from absl import flags

from mnist_dist.cli import program
from mnist_dist.cli.module_path import interpreter_flags
from mnist_dist.cli.standard_streams import ignore_write_errors
from mnist_dist.cluster.membership import LAUNCH_ID, TOKEN
from mnist_dist.cluster.rendezvous import agree_with_hosts
from mnist_dist.cluster.worker_group import StopSignals, run_workers, say
from mnist_dist.errors import EXIT_INPUT, EXIT_STOPPED, InputError

NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 2, "Workers on this host.", lower_bound=1, upper_bound=256
)
MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 0, "Times to start all workers again.", lower_bound=0
)
VERB = flags.DEFINE_enum(
    "verb", "train", ["train", "doctor"], "What the workers do: train, or doctor."
)
NNODES = flags.DEFINE_integer("nnodes", 1, "Number of hosts of the run.", lower_bound=1)
NODE_RANK = flags.DEFINE_integer(
    "node_rank", 0, "Place of this host, from 0.", lower_bound=0
)
MASTER_ADDR = flags.DEFINE_string("master_addr", "", "Host that runs --node_rank=0.")
MASTER_PORT = flags.DEFINE_integer(
    "master_port",
    29400,
    "Port on which the launcher of --node_rank=0 listens.",
    lower_bound=1,
    upper_bound=65535,
)

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds before a restart


def main(argv: Sequence[str], *, train_args: Sequence[str]) -> int:
    """Checks both parts of the command line and runs the workers."""
    del argv
    # Imported here, so that a flag of train before the `--` is an unknown flag.
    from mnist_dist.cli import train_flags

    parse = train_flags.parse
    if VERB.value == "doctor":
        from mnist_dist.cli import doctor_flags

        parse = doctor_flags.parse
    options = parse(train_args)
    if options.worker_hosts or options.task_index is not None:
        raise InputError(
            "--worker_hosts, --task_index: found one after the --, expected neither: "
            "launch sets them"
        )
    if NNODES.value > 1 and not MASTER_ADDR.value:
        raise InputError("--master_addr: found nothing, expected the first host's name")
    if NODE_RANK.value >= NNODES.value:
        raise InputError(
            f"--node_rank: found {NODE_RANK.value}, expected 0 to {NNODES.value - 1}"
        )
    try:
        return launch(
            [
                *(sys.executable, *interpreter_flags()),
                *("-m", f"mnist_dist.{VERB.value}", *train_args),
            ],
            num_workers=NUM_WORKERS.value,
            uses_gpus=options.num_gpus != 0 and options.logical_cpus == 1,
            max_restarts=MAX_RESTARTS.value,
            model_dir=options.model_dir if VERB.value == "train" else None,
            nnodes=NNODES.value,
            node_rank=NODE_RANK.value,
            master=(MASTER_ADDR.value, MASTER_PORT.value),
            timeout=options.cluster_timeout,
        )
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.EAGAIN):
            raise
        raise InputError(
            f"--num_workers: found {NUM_WORKERS.value}, more than this process may "
            f"start: {error.strerror}; expected fewer, or a higher limit (ulimit -n "
            "for open files, ulimit -u for processes)"
        ) from error


def launch(
    command: Sequence[str],
    *,
    num_workers: int,
    max_restarts: int,
    model_dir: str | None,
    uses_gpus: bool = True,
    nnodes: int = 1,
    node_rank: int = 0,
    master: tuple[str, int] = ("", 0),
    timeout: float = 300.0,
) -> int:
    """Runs the workers until all have ended, starting them again when one fails.

    Args:
      command: of a worker; `--worker_hosts` and `--task_index` are added.
      num_workers: of this host.
      max_restarts: how often to start all of them again.
      model_dir: logs are kept in its `logs`. None is for workers that are no training:
        no logs are kept, and wrong input is not repeated at the end.
      uses_gpus: whether the GPUs of CUDA_VISIBLE_DEVICES are shared out.
      nnodes: number of hosts.
      node_rank: place of this host.
      master: host and port where the first host's launcher listens.
      timeout: seconds to wait for the other hosts.

    Returns:
      The exit code: that of the worker that failed first, or 0.

    Raises:
      PeerError: another host did not come, or a signal ended the wait for it.
      InputError: there are fewer GPUs than workers.
    """
    environments = _environments(num_workers, uses_gpus=uses_gpus)
    shared_token = os.environ.get(TOKEN, "")
    token = shared_token or secrets.token_hex(16)
    stop = StopSignals()
    delay, restart = FIRST_DELAY, 0
    while True:
        restart += 1
        checkpoints = _checkpoints(model_dir)
        ports = _free_ports(num_workers)
        workers, first_rank = [f"127.0.0.1:{port}" for port in ports], 0
        if nnodes > 1:
            agreement = agree_with_hosts(
                ports,
                nnodes=nnodes,
                node_rank=node_rank,
                master=master,
                timeout=timeout,
                shared_token=shared_token,
                new_token=token,
                is_stopping=lambda: stop.signal is not None,
                say=say,
            )
            workers, first_rank = agreement.workers, agreement.first_rank
            token = agreement.token
        hosts = f"--worker_hosts={','.join(workers)}"
        failed = run_workers(
            {
                rank: [*command, hosts, f"--task_index={rank}"]
                for rank in range(first_rank, first_rank + num_workers)
            },
            environments=[environment | {TOKEN: token} for environment in environments],
            model_dir=model_dir,
            stop=stop,
        )
        if failed is None:
            return 0
        code = failed.exit_code()
        if stop.signal:  # a worker without handlers yet has died of it
            return EXIT_STOPPED if code == 128 + stop.signal else code
        if code == EXIT_INPUT and model_dir is None:
            return code
        if code == EXIT_INPUT or restart > max_restarts:
            say(f"worker {failed.rank} failed first, with code {code}; its last words:")
            for line in failed.last_words():
                print(line, file=sys.stderr)
            return code
        # The delay grows only while no new checkpoint appears between failures.
        has_moved = _checkpoints(model_dir) != checkpoints
        delay = FIRST_DELAY if has_moved else min(2 * delay, LONGEST_DELAY)
        say(
            f"worker {failed.rank} ended with code {code}; restart {restart} of "
            f"{max_restarts} in {delay:g} s"
        )
        if stop.sleep(delay):
            return EXIT_STOPPED


def _environments(num_workers: int, *, uses_gpus: bool) -> list[dict[str, str]]:
    """Returns an environment for each worker, with its share of processors and GPUs.

    GPUs only as far as CUDA_VISIBLE_DEVICES names them; else the workers of one host
    share out what they find there.
    """
    threads = max(len(os.sched_getaffinity(0)) // num_workers, 1)
    common = {
        "PYTHONUNBUFFERED": "1",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        # A restarted worker recognises its run by it (`run.config.is_restart`).
        LAUNCH_ID: uuid.uuid4().hex,
    } | dict(os.environ)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    if not gpus or not uses_gpus:
        return [common] * num_workers
    if len(gpus) < num_workers:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES: found {visible!r} for {num_workers} workers, "
            "expected a GPU for each, or --num_gpus=0"
        )
    share = len(gpus) // num_workers
    return [
        common | {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share :][:share])}
        for i in range(num_workers)
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _checkpoints(model_dir: str | None) -> frozenset[str]:
    try:
        return frozenset(os.listdir(os.path.join(model_dir or "", "checkpoints")))
    except OSError:
        return frozenset()


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line at its first `--`."""
    where = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:where]), list(argv[where + 1 :])


if __name__ == "__main__":
    sys.argv, rest = split_command(sys.argv)
    ignore_write_errors("stdout")  # the workers go on if nobody reads their output
    program.run(functools.partial(main, train_args=rest))
