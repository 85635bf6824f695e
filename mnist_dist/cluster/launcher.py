"""Runs a launch to its end: workers, restarts, and what is agreed with other hosts."""

import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence

from mnist_dist.cluster.first_host import FirstHost
from mnist_dist.cluster.membership import TOKEN
from mnist_dist.cluster.other_host import OtherHost
from mnist_dist.cluster.places import Places
from mnist_dist.cluster.rendezvous import (
    Host,
    HostsOptions,
    LaunchEnded,
    OneHost,
)
from mnist_dist.cluster.restarts import Restarts
from mnist_dist.cluster.worker_group import (
    STOP_SIGNAL,
    StopSignals,
    Worker,
    run_workers,
    say,
)
from mnist_dist.errors import EXIT_INPUT, EXIT_STOPPED


def launch(
    command: Sequence[str],
    *,
    num_workers: int,
    max_restarts: int,
    model_dir: str | None,
    min_workers: int | None = None,
    fits: Callable[[int], bool] = lambda num_workers: True,
    uses_gpus: bool = True,
    hosts: HostsOptions | None = None,
) -> int:
    """Runs the workers until all have ended, starting them again when one fails.

    Args:
      command: of a worker; `--worker_hosts` and `--task_index` are added.
      num_workers: of this host.
      max_restarts: how often to start all of them again. In an elastic launch each host
        counts the failures of its own workers.
      model_dir: logs are kept in its `logs`. None is for workers that are no training:
        no logs are kept, and wrong input is not repeated at the end.
      min_workers: to go on with at least when others are lost for good; None: all. For
        one host.
      fits: whether so many workers can share the batch out equally.
      uses_gpus: whether the GPUs of CUDA_VISIBLE_DEVICES are shared out.
      hosts: which there are, and which this is; None: this one alone.

    Returns:
      The exit code: that of the worker that failed first, or 0.

    Raises:
      PeerError: another host did not come, or a signal ended the wait for it.
      InputError: there are fewer GPUs than workers.
    """
    hosts = hosts or HostsOptions()
    places = Places(
        num_workers, uses_gpus=uses_gpus, min_workers=min_workers, fits=fits
    )
    restarts = Restarts(max_restarts, model_dir=model_dir)
    stop = StopSignals()
    code = EXIT_STOPPED  # unless it is known better
    with _create_host(hosts, fits=fits, stop=stop) as host:
        try:
            code = _run_to_the_end(
                command,
                host=host,
                hosts=hosts,
                places=places,
                restarts=restarts,
                model_dir=model_dir,
                stop=stop,
            )
        except LaunchEnded as ended:
            say(str(ended))
            code = ended.code
        finally:
            host.end(code)
    return code


def _create_host(
    hosts: HostsOptions, *, fits: Callable[[int], bool], stop: StopSignals
) -> Host:
    shared_token = os.environ.get(TOKEN, "")
    new_token = secrets.token_hex(16)
    if hosts.most == 1:
        return OneHost(shared_token or new_token)

    def is_stopping() -> bool:
        return stop.signal is not None

    if hosts.node_rank:
        return OtherHost(
            hosts, shared_token=shared_token, is_stopping=is_stopping, say=say
        )
    return FirstHost(
        hosts,
        shared_token=shared_token,
        new_token=new_token,
        fits=fits,
        is_stopping=is_stopping,
        say=say,
    )


def _run_to_the_end(
    command: Sequence[str],
    *,
    host: Host,
    hosts: HostsOptions,
    places: Places,
    restarts: Restarts,
    model_dir: str | None,
    stop: StopSignals,
) -> int:
    """Starts the workers until nothing is left to do; returns the exit code."""
    is_first = hosts.node_rank == 0  # the others may see no checkpoint
    while True:
        restarts.begin_attempt()
        failed = _run_once(
            command, host=host, places=places, model_dir=model_dir, stop=stop
        )
        if failed is None:
            return 0
        code = failed.exit_code()
        if stop.signal:  # a worker without handlers yet has died of it
            return EXIT_STOPPED if code == 128 + stop.signal else code
        if code == EXIT_INPUT and model_dir is None:
            return code
        if code == 128 + STOP_SIGNAL and host.is_stop_wanted():
            code = EXIT_STOPPED  # it came before the worker could handle it
        if code == EXIT_STOPPED and host.has_newcomer():
            say("another host has come: starting again with it")
            continue
        restarts.note(failed)
        ended = f"worker {failed.rank} ended with code {code}"
        is_wrong = code == EXIT_INPUT
        is_hopeless = is_first and restarts.is_fruitless
        if hosts.is_elastic and code == EXIT_STOPPED and not is_hopeless:
            say(f"{ended}: another worker is gone; starting again without counting it")
        elif not is_wrong and restarts.is_lost_for_good and places.give_up(failed.rank):
            restarts.begin_with_fewer()
            say(
                f"{ended} and is given up; going on with {len(places.used)} in "
                f"{restarts.delay:g} s"
            )
        elif is_wrong or restarts.is_last or is_hopeless:
            say(f"worker {failed.rank} failed first, with code {code}; its last words:")
            for line in failed.last_words():
                print(line, file=sys.stderr)
            return code
        else:
            say(f"{ended}; {restarts.count_one()}")
        # In an elastic launch the first host delays all, and would wait for this one.
        if (is_first or not hosts.is_elastic) and stop.sleep(restarts.delay):
            return EXIT_STOPPED


def _run_once(
    command: Sequence[str],
    *,
    host: Host,
    places: Places,
    model_dir: str | None,
    stop: StopSignals,
) -> Worker | None:
    """Starts this host's workers once; returns the one that failed first, or None."""
    agreement = host.agree(_free_ports(len(places.used)))
    workers = f"--worker_hosts={','.join(agreement.workers)}"
    first, count = agreement.first_rank, agreement.num_workers
    return run_workers(
        {
            rank: [*command, workers, f"--task_index={rank}"]
            for rank in range(first, first + count)
        },
        environments=[
            {**place, TOKEN: agreement.token} for place in places.used[:count]
        ],
        model_dir=model_dir,
        stop=stop,
        is_stop_wanted=host.is_stop_wanted,
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
