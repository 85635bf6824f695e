"""Runs a launch to its end: workers, restarts, and what is agreed with other hosts."""

import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence

from mnist_dist.cluster.membership import TOKEN
from mnist_dist.cluster.places import Places
from mnist_dist.cluster.rendezvous import agree_with_hosts
from mnist_dist.cluster.restarts import Restarts
from mnist_dist.cluster.worker_group import StopSignals, run_workers, say
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
      min_workers: to go on with at least when others are lost for good; None: all.
      fits: whether so many workers can share the batch out equally.
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
    places = Places(
        num_workers, uses_gpus=uses_gpus, min_workers=min_workers, fits=fits
    )
    restarts = Restarts(max_restarts, model_dir=model_dir)
    shared_token = os.environ.get(TOKEN, "")
    token = shared_token or secrets.token_hex(16)
    stop = StopSignals()
    while True:
        restarts.begin_attempt()
        ports = _free_ports(len(places.used))
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
                for rank in range(first_rank, first_rank + len(ports))
            },
            environments=[{**place, TOKEN: token} for place in places.used],
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
        restarts.note(failed)
        is_wrong = code == EXIT_INPUT
        if not is_wrong and restarts.is_lost_for_good and places.give_up(failed.rank):
            restarts.forget_rank()
            say(
                f"worker {failed.rank} ended with code {code} and is given up; going on "
                f"with {len(places.used)} in {restarts.delay:g} s"
            )
        elif is_wrong or restarts.is_last:
            say(f"worker {failed.rank} failed first, with code {code}; its last words:")
            for line in failed.last_words():
                print(line, file=sys.stderr)
            return code
        else:
            say(f"worker {failed.rank} ended with code {code}; {restarts.count_one()}")
        if stop.sleep(restarts.delay):
            return EXIT_STOPPED


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
