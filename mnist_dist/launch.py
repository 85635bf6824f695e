"""Starts several workers of `train` on this host, and restarts all if one fails.

  mnist-dist launch --num_workers=2 -- --model_dir=runs/two
  mnist-dist launch --num_workers=2 --verb=doctor -- --model_dir=runs/two
  mnist-dist launch --num_workers=2 --max_restarts=3 -- --model_dir=runs/two
  mnist-dist launch --num_workers=4 --min_workers=2 -- --model_dir=runs/elastic

Several hosts by hand: the same command on each, with its own --node_rank:
  mnist-dist launch --num_workers=4 --nnodes=2 --node_rank=0 --master_addr=HOST0 -- ...
  mnist-dist launch --num_workers=4 --nnodes=2 --node_rank=1 --master_addr=HOST0 -- ...
With --nnodes=2:4 the run begins with up to 4 hosts, goes on with those that are left, at
least 2, and takes new ones in.

Each line of output begins with the worker's rank and is kept in MODEL_DIR/logs/. When a
worker fails, all are stopped and started again, at most --max_restarts times. They go on
from the newest checkpoint. With --min_workers a worker that fails once more than that, or
twice in a row without a new checkpoint, is given up, and the others go on without it. A
worker that ends with exit code 2 (wrong input) is not started again. If the launch fails,
the last words of the worker that failed first are printed, and its exit code is returned.
When the launcher ends, for whatever reason, its workers end.
"""

import errno
import functools
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from mnist_dist.cli import program
from mnist_dist.cli.module_path import interpreter_flags
from mnist_dist.cli.standard_streams import ignore_write_errors
from mnist_dist.cluster.launcher import launch
from mnist_dist.cluster.places import count_named_gpus
from mnist_dist.cluster.rendezvous import HostsOptions
from mnist_dist.errors import InputError
from mnist_dist.training.batch_shares import BatchShares

NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 2, "Workers on this host.", lower_bound=1, upper_bound=256
)
MIN_WORKERS = flags.DEFINE_integer(
    "min_workers",
    None,
    "Fewest workers to go on with when others are lost for good; all by default.",
    lower_bound=1,
)
MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 0, "Times to start all workers again.", lower_bound=0
)
VERB = flags.DEFINE_enum(
    "verb", "train", ["train", "doctor"], "What the workers do: train, or doctor."
)
NNODES = flags.DEFINE_string(
    "nnodes",
    "1",
    "Number of hosts of the run; or MIN:MAX: fewest to go on with, and most to take in.",
)
REJOIN_TIMEOUT = flags.DEFINE_float(
    "rejoin_timeout",
    60.0,
    "Seconds to wait for a lost host before MIN or more others go on without it.",
    lower_bound=0,
    upper_bound=1e6,
)
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

if TYPE_CHECKING:
    from mnist_dist.training.options import TrainingOptions


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
    hosts = _hosts_options(timeout=options.cluster_timeout)
    fits = _any_number
    # The first host decides; others may not see the run that goes on.
    changes = hosts.is_elastic or MIN_WORKERS.value is not None
    if changes and hosts.node_rank == 0:
        shares = BatchShares.of_run(
            options,
            train_flags.given().keys(),
            replicas_each=_replicas_each(options),
        )
        _check_numbers(shares, hosts)
        fits = shares.fits
    try:
        return launch(
            [
                *(sys.executable, *interpreter_flags()),
                *("-m", f"mnist_dist.{VERB.value}", *train_args),
            ],
            num_workers=NUM_WORKERS.value,
            min_workers=MIN_WORKERS.value,
            fits=fits,
            uses_gpus=_uses_gpus(options),
            max_restarts=MAX_RESTARTS.value,
            model_dir=options.model_dir if VERB.value == "train" else None,
            hosts=hosts,
        )
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.EAGAIN):
            raise
        raise InputError(
            f"--num_workers: found {NUM_WORKERS.value}, more than this process may "
            f"start: {error.strerror}; expected fewer, or a higher limit (ulimit -n "
            "for open files, ulimit -u for processes)"
        ) from error


def _any_number(num_workers: int) -> bool:
    """Leaves a fixed number of workers to their own checks."""
    del num_workers
    return True


def _uses_gpus(options: "TrainingOptions") -> bool:
    return options.num_gpus != 0 and options.logical_cpus == 1


def _hosts_options(*, timeout: float) -> HostsOptions:
    """Checks what the flags say of the hosts; raises `InputError`."""
    form = re.fullmatch(r"([0-9]{1,4})(?::([0-9]{1,4}))?", NNODES.value)
    least = int(form[1]) if form else 0
    most = int(form[2] or form[1]) if form else 0
    if not 0 < least <= most:
        raise InputError(
            f"--nnodes: found {NNODES.value!r}, expected a number of hosts from 1 to 9999, "
            "or the least and the most of them as in 2:4"
        )
    if most > 1 and not MASTER_ADDR.value:
        raise InputError("--master_addr: found nothing, expected the first host's name")
    if NODE_RANK.value >= most:
        raise InputError(
            f"--node_rank: found {NODE_RANK.value}, expected 0 to {most - 1}"
        )
    if REJOIN_TIMEOUT.present and least == most:
        raise InputError(
            f"--rejoin_timeout: found it with --nnodes={NNODES.value}, which always waits "
            "for all hosts, expected --nnodes=MIN:MAX"
        )
    return HostsOptions(
        least=least,
        most=most,
        node_rank=NODE_RANK.value,
        master=(MASTER_ADDR.value, MASTER_PORT.value),
        timeout=timeout,
        rejoin_timeout=REJOIN_TIMEOUT.value,
    )


def _check_numbers(shares: BatchShares, hosts: HostsOptions) -> None:
    """Checks the bounds of a number of workers that may change.

    Raises:
      InputError: they are none, or cannot share the batch out.
    """
    least, most = MIN_WORKERS.value, NUM_WORKERS.value
    bounds = [("--nnodes", n, n * most) for n in (hosts.least, hosts.most)]
    if least is not None:
        if hosts.most > 1:
            raise InputError(
                f"--min_workers: found it with --nnodes={NNODES.value}, expected one host"
            )
        if least > most:
            raise InputError(
                f"--min_workers: found {least} of {most} workers, expected 1 to {most}"
            )
        bounds = [("--min_workers", least, least), ("--num_workers", most, most)]
    for flag, found, num_workers in bounds:
        try:
            shares.check(num_workers)
        except InputError as error:
            raise InputError(f"{flag}: found {found}: {error}") from None


def _replicas_each(options: "TrainingOptions") -> int:
    """Returns how many replicas a worker has, as far as that is known here."""
    if not _uses_gpus(options):
        return 1
    named = count_named_gpus() // NUM_WORKERS.value
    num_gpus = options.num_gpus if options.num_gpus > 0 else max(named, 1)
    return num_gpus * options.logical_gpus


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line at its first `--`."""
    where = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:where]), list(argv[where + 1 :])


if __name__ == "__main__":
    sys.argv, rest = split_command(sys.argv)
    ignore_write_errors("stdout")  # the workers go on if nobody reads their output
    program.run(functools.partial(main, train_args=rest))
