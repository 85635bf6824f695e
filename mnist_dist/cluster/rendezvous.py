"""The launchers of several hosts agree on the list of all workers."""

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable

from mnist_dist.cluster.membership import split_address
from mnist_dist.errors import PeerError

_MESSAGE_SECONDS = 5.0  # that a launcher may take to send its line


def agree_with_hosts(
    ports: list[int],
    *,
    nnodes: int,
    node_rank: int,
    master: tuple[str, int],
    timeout: float,
    is_stopping: Callable[[], bool] = lambda: False,
) -> tuple[list[str], int]:
    """Tells the first host's launcher this host's ports, and learns all workers.

    Args:
      ports: of this host's workers.
      nnodes: number of hosts.
      node_rank: place of this host.
      master: host and port where the first host's launcher listens.
      timeout: seconds to wait for the other hosts.
      is_stopping: whether to wait no longer.

    Returns:
      `host:port` of all workers by rank, and the rank of this host's first.

    Raises:
      PeerError: a host did not come in time, or the wait was stopped.
    """
    deadline = time.monotonic() + timeout
    hosts = (
        _gather(ports, nnodes, master, deadline, is_stopping)
        if node_rank == 0
        else _join(ports, node_rank, master, deadline, is_stopping)
    )
    return [w for host in hosts for w in host], sum(map(len, hosts[:node_rank]))


def _gather(
    ports: list[int],
    nnodes: int,
    master: tuple[str, int],
    deadline: float,
    is_stopping: Callable[[], bool],
) -> list[list[str]]:
    address, port = master
    hosts = {0: [f"{_bracketed(address)}:{p}" for p in ports]}
    try:
        server = _listen(port)
    except OSError as error:
        raise PeerError(
            f"--master_port: cannot listen on {port}: {error.strerror}"
        ) from error
    with contextlib.ExitStack() as connections:
        connections.enter_context(server)
        joined: list[socket.socket] = []
        while len(hosts) < nnodes:
            if not _wait(deadline, is_stopping, server):
                missing = sorted(set(range(nnodes)) - hosts.keys())
                raise PeerError(
                    f"--nnodes: host {', '.join(map(str, missing))} of {nnodes} did "
                    "not come within --cluster_timeout"
                )
            connection, (peer, *_) = server.accept()
            connections.enter_context(connection)
            connection.settimeout(_MESSAGE_SECONDS)
            try:
                message = json.loads(connection.makefile("rb").readline(1 << 16))
                rank = int(message["node_rank"])
                # As a dual-stack socket names an IPv4 host.
                host = _bracketed(peer.removeprefix("::ffff:"))
                workers = [f"{host}:{int(p)}" for p in message["ports"]]
                for worker in workers:
                    split_address(worker)
                if not 0 < rank < nnodes:
                    raise ValueError(rank)
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()  # whoever that was
                continue
            hosts[rank] = workers
            joined.append(connection)
        ordered = [hosts[rank] for rank in range(nnodes)]
        for connection in joined:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(ordered).encode() + b"\n")
    return ordered


def _join(
    ports: list[int],
    node_rank: int,
    master: tuple[str, int],
    deadline: float,
    is_stopping: Callable[[], bool],
) -> list[list[str]]:
    trouble = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(master, timeout=min(left, 5)) as connection:
                message = {"node_rank": node_rank, "ports": ports}
                connection.sendall(json.dumps(message).encode() + b"\n")
                # The answer comes when all hosts are there.
                if _wait(deadline, is_stopping, connection):
                    return json.loads(connection.makefile("rb").readline(1 << 20))
                trouble = "not all hosts have come"
        except (OSError, ValueError) as error:
            trouble = str(error)
        _wait(time.monotonic() + 0.2, is_stopping)
    raise PeerError(
        f"--master_addr: {master[0]}:{master[1]} was not reached within "
        f"--cluster_timeout: {trouble}"
    )


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        family = socket.AF_INET6
        return socket.create_server(("", port), family=family, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _wait(
    deadline: float, is_stopping: Callable[[], bool], *sources: socket.socket
) -> bool:
    """Waits until a source can be read; returns False when the time is over."""
    while (left := deadline - time.monotonic()) > 0:
        if is_stopping():
            raise PeerError("stopped while waiting for the other hosts")
        if select.select(sources, [], [], min(left, 0.1))[0]:
            return True
    return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
