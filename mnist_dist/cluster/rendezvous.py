"""The launchers of several hosts agree on the list of all workers."""

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeGuard

from mnist_dist.cluster.membership import split_address
from mnist_dist.cluster.messages import Channel, connect, describe_trouble, listen
from mnist_dist.cluster.reminder import Reminder
from mnist_dist.errors import PeerError

_MAX_REQUEST, _MAX_ANSWER = 1 << 16, 1 << 22  # bytes
_MAX_WORKERS = 256  # of one host, as `launch` has them


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What the launchers of all hosts know after they have met.

    Attributes:
      workers: `host:port` of all workers by rank.
      first_rank: rank of this host's first worker.
      token: that the workers prove themselves with.
    """

    workers: list[str]
    first_rank: int
    token: str


def agree_with_hosts(
    ports: list[int],
    *,
    nnodes: int,
    node_rank: int,
    master: tuple[str, int],
    timeout: float,
    shared_token: str = "",
    new_token: str = "",
    is_stopping: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> Agreement:
    """Tells the first host's launcher this host's ports, and learns all workers.

    Args:
      ports: of this host's workers.
      nnodes: number of hosts.
      node_rank: place of this host.
      master: host and port where the first host's launcher listens.
      timeout: seconds to wait for the other hosts.
      shared_token: that all launchers were started with: whoever does not know it is
        none of them. Without one, whoever comes first is believed.
      new_token: that the first host gives to all where there is no shared one.
      is_stopping: whether to wait no longer.
      say: tells a person what is waited for.

    Raises:
      PeerError: a host did not come in time, or the wait was stopped.
    """
    deadline = time.monotonic() + timeout

    def check() -> None:
        if is_stopping():
            raise PeerError("stopped while waiting for the other hosts")

    if node_rank == 0:
        gathering = Gathering(ports, nnodes=nnodes, host=master[0], token=shared_token)
        return gathering.run(
            master[1], deadline=deadline, new_token=new_token, check=check, say=say
        )
    return _join(ports, node_rank, master, shared_token, deadline, check, say)


class Gathering:
    """The first host's side: who has come so far."""

    def __init__(self, ports: list[int], *, nnodes: int, host: str, token: str) -> None:
        self._nnodes = nnodes
        self._token = token
        self._lock = threading.Lock()
        self._hosts = {0: _addresses(host, ports)}
        self._channels: dict[int, Channel] = {}

    def take(self, channel: Channel) -> bool:
        """Takes a host in; returns False if it is none of this run."""
        message = channel.receive(_MAX_REQUEST)
        if self._token and not channel.is_proven:
            return False
        rank, ports = message.get("node_rank"), message.get("ports")
        if not _is_whole(rank, below=self._nnodes) or rank == 0:
            return False
        if not isinstance(ports, list) or not 0 < len(ports) <= _MAX_WORKERS:
            return False
        if not all(_is_whole(port, below=1 << 16) and port for port in ports):
            return False
        with self._lock:
            if rank in self._channels:  # it has come again
                self._channels[rank].close()
            self._hosts[rank] = _addresses(channel.peer_address, ports)
            self._channels[rank] = channel
        return True

    def run(
        self,
        port: int,
        *,
        deadline: float,
        new_token: str,
        check: Callable[[], None],
        say: Callable[[str], None],
    ) -> Agreement:
        """Waits for all hosts and answers them."""
        reminder = Reminder()
        try:
            with listen(port, self.take, token=self._token):
                while missing := ", ".join(map(str, self.missing())):
                    check()
                    if time.monotonic() > deadline:
                        raise PeerError(
                            f"--nnodes: host {missing} of {self._nnodes} did not come "
                            "within --cluster_timeout"
                        )
                    if reminder.is_due():
                        say(f"waiting on port {port} for host {missing}")
                    time.sleep(0.05)
        except OSError as error:
            raise PeerError(
                f"--master_port: cannot listen on {port}: {error.strerror}"
            ) from error
        token = self._token or new_token
        hosts = [self._hosts[rank] for rank in range(self._nnodes)]
        answer: dict[str, Any] = {"hosts": hosts}
        if not self._token:
            answer["token"] = token
        for channel in self._channels.values():
            with contextlib.suppress(OSError, ValueError):
                channel.restart_clock()
                channel.send(answer)
            channel.close()
        return _agreement(hosts, node_rank=0, token=token)

    def missing(self) -> list[int]:
        """Returns the hosts that have not come yet."""
        return sorted(set(range(self._nnodes)) - self._hosts.keys())


def _join(
    ports: list[int],
    node_rank: int,
    master: tuple[str, int],
    shared_token: str,
    deadline: float,
    check: Callable[[], None],
    say: Callable[[str], None],
) -> Agreement:
    trouble, is_unknown = "no answer", False
    reminder = Reminder()
    where = f"{master[0]}:{master[1]}"

    def wait() -> None:
        check()
        if reminder.is_due():
            say(f"waiting for the first host, {where}: {trouble}")

    while (left := deadline - time.monotonic()) > 0:
        try:
            channel = connect(master, token=shared_token, seconds=left)
            with contextlib.closing(channel):
                channel.send({"node_rank": node_rank, "ports": ports})
                trouble = "not all hosts have come"
                # The answer comes when all hosts are there.
                answer = channel.receive(_MAX_ANSWER, check=wait)
                if shared_token and not channel.is_proven:
                    raise ValueError("it does not know the launch's token")
                token = shared_token or str(answer.get("token", ""))
                hosts = _checked_hosts(answer.get("hosts"), node_rank, len(ports))
                return _agreement(hosts, node_rank=node_rank, token=token)
        except (OSError, ValueError) as error:
            trouble = describe_trouble(error)
            if isinstance(error, socket.gaierror) and not is_unknown:
                is_unknown = True  # told at once: it may be misspelt
                say(f"waiting for the first host, {where}: {trouble}")
        wait()
        time.sleep(0.2)
    raise PeerError(
        f"--master_addr: {where} was not reached within --cluster_timeout: {trouble}"
    )


def _checked_hosts(hosts: object, node_rank: int, num_workers: int) -> list[list[str]]:
    """Checks what the first host's launcher sent; raises `ValueError`."""
    if not isinstance(hosts, list) or not all(isinstance(h, list) for h in hosts):
        raise ValueError("its answer has no lists of workers")
    for worker in [worker for host in hosts for worker in host]:
        split_address(str(worker))
    if len(hosts) <= node_rank or len(hosts[node_rank]) != num_workers:
        raise ValueError("its answer lacks this host's workers")
    return [[str(worker) for worker in host] for host in hosts]


def _agreement(hosts: list[list[str]], *, node_rank: int, token: str) -> Agreement:
    return Agreement(
        workers=[worker for host in hosts for worker in host],
        first_rank=sum(map(len, hosts[:node_rank])),
        token=token,
    )


def _is_whole(value: object, *, below: int) -> TypeGuard[int]:
    return isinstance(value, int) and value is not True and 0 <= value < below


def _addresses(host: str, ports: list[int]) -> list[str]:
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for port in ports]
