"""The first host's launcher: it hears the others, and says who takes part in a start."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

from mnist_dist.cluster.messages import Channel, listen
from mnist_dist.cluster.reminder import Reminder
from mnist_dist.cluster.rendezvous import Agreement, HostsOptions, addresses, is_whole
from mnist_dist.errors import PeerError

_MAX_REQUEST = 1 << 16  # bytes
_MAX_WORKERS = 256  # of one host, as `launch` has them
_FAREWELL_SECONDS = (
    5.0  # that hosts whose workers have ended may take to hear of the end
)


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A host that has come and waits for an answer."""

    channel: Channel
    workers: list[str]


class FirstHost:
    """Listens from the first start to the end of the launch."""

    def __init__(
        self,
        options: HostsOptions,
        *,
        shared_token: str,
        new_token: str,
        fits: Callable[[int], bool],
        is_stopping: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """Does not listen yet.

        Args:
          options: of the launch.
          shared_token: that all launchers were started with: whoever does not know it is
            none of them. Without one, whoever comes first is believed.
          new_token: that all are given where there is no shared one.
          fits: whether so many workers can share the batch out equally.
          is_stopping: whether to wait no longer.
          say: tells a person what is waited for, and who takes part.
        """
        self._options = options
        self._shared_token = shared_token
        self._token = shared_token or new_token
        self._fits = fits
        self._is_stopping = is_stopping
        self._say = say
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._left: set[int] = set()  # have said that they do not come again
        self._expected = set(range(1, options.most))
        # Hosts of the last start, and how many workers each has places for.
        self._members: dict[int, int] = {}
        self._num_workers = 0  # of the last start
        # Connections to the other hosts of the last start, to the end of its workers.
        self._connections = contextlib.ExitStack()
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> "FirstHost":
        """Listens.

        Raises:
          PeerError: the port is taken.
        """
        port = self._options.master[1]
        try:
            self._listening.enter_context(
                listen(port, self._take, token=self._shared_token)
            )
        except OSError as error:
            raise PeerError(
                f"--master_port: cannot listen on {port}: {error.strerror}"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        """Listens no longer."""
        self._listening.close()
        self._connections.close()
        for waiting in self._waiting.values():
            waiting.channel.close()

    def agree(self, ports: list[int]) -> Agreement:
        """Waits for the other hosts, and answers those that take part.

        Waited for are all hosts at first, and later those of the last start, but in an
        elastic launch no longer than `rejoin_timeout` if enough have come.
        """
        self._connections.close()
        self._wait_for_hosts()
        mine = addresses(self._options.master[0], ports)
        with self._lock:
            hosts = {0: mine} | {r: w.workers for r, w in self._open().items()}
            places = {rank: len(hosts[rank]) for rank in sorted(hosts)}
            left = self._num_workers = self._count_fitting(sum(places.values()))
            if not left:
                raise PeerError(
                    f"the {sum(places.values())} workers of {len(places)} hosts cannot "
                    "share the batch out equally, and no smaller number of them"
                )
            taken: dict[int, list[str]] = {}
            for rank in places:
                if workers := hosts[rank][:left]:
                    taken[rank], left = workers, left - len(workers)
            self._members = {rank: places[rank] for rank in taken}
            if self._options.is_elastic:
                count = self._num_workers
                self._say(
                    f"{count} worker{'s' * (count > 1)} on host {_names(set(taken))}"
                )
                self._expected = self._members.keys() - {0}
            return self._answer(taken)

    def has_newcomer(self) -> bool:
        """Whether a host waits with which more workers could compute."""
        with self._lock:
            fresh = [
                len(waiting.workers)
                for rank, waiting in self._open().items()
                if rank not in self._members
            ]
            places = sum(self._members.values()) + sum(fresh)
        return bool(fresh) and self._count_fitting(places) > self._num_workers

    def is_stop_wanted(self) -> bool:
        """Whether the workers of another host have ended, or a new host has come.

        Workers notice that others have ended, but for those that still wait to meet them.
        """
        with self._lock:
            have_ended = self._members.keys() & (self._open().keys() | self._left)
        return bool(have_ended) or self.has_newcomer()

    def end(self, code: int) -> None:
        """Tells the others of the end: who waits, and whose workers have ended too."""
        deadline = time.monotonic() + (_FAREWELL_SECONDS if code else 0.0)
        untold = self._members.keys() - {0}
        while True:
            with self._lock:
                untold -= self._waiting.keys() | self._left
                for waiting in self._waiting.values():
                    _send(waiting.channel, {"ended": code})
                    waiting.channel.close()
                self._waiting.clear()
            if not untold or time.monotonic() > deadline:
                return
            time.sleep(0.05)

    def _take(self, channel: Channel) -> bool:
        """Hears a host; returns False if it is none of this launch, or leaves."""
        message = channel.receive(_MAX_REQUEST)
        if self._shared_token and not channel.is_proven:
            return False
        rank, ports = message.get("node_rank"), message.get("ports")
        if not is_whole(rank, below=self._options.most) or rank == 0:
            return False
        if message.get("leaves") is True:
            with self._lock:
                self._left.add(rank)
            return False
        if not isinstance(ports, list) or not 0 < len(ports) <= _MAX_WORKERS:
            return False
        if not all(is_whole(port, below=1 << 16) and port for port in ports):
            return False
        with self._lock:
            if rank in self._waiting:  # it has come again
                self._waiting[rank].channel.close()
            workers = addresses(channel.peer_address, ports)
            self._waiting[rank] = _Waiting(channel, workers)
            self._left.discard(rank)
        return True

    def _open(self) -> dict[int, _Waiting]:
        """Returns the hosts that wait, without those that are gone again."""
        for rank in [r for r, w in self._waiting.items() if not w.channel.is_open()]:
            self._waiting.pop(rank).channel.close()
        return self._waiting

    def _wait_for_hosts(self) -> None:
        options, reminder = self._options, Reminder()
        began = time.monotonic()
        while True:
            with self._lock:
                here = {0, *self._open()}
                missing = self._expected - here
                if options.is_elastic:
                    missing -= self._left
            seconds = time.monotonic() - began
            if len(here) >= options.least:
                if not missing:
                    return
                if options.is_elastic and seconds > options.rejoin_timeout:
                    self._say(f"host {_names(missing)} has not come; going on without")
                    return
            if self._is_stopping():
                raise PeerError("stopped while waiting for the other hosts")
            if seconds > options.longest_wait:
                raise PeerError(
                    f"--nnodes: {len(here)} hosts have come within --cluster_timeout, "
                    f"expected at least {options.least}"
                    if options.is_elastic
                    else f"--nnodes: host {_names(missing)} of {options.most} did not "
                    "come within --cluster_timeout"
                )
            if reminder.is_due():
                who = _names(missing) if missing else "another"
                self._say(f"waiting on port {options.master[1]} for host {who}")
            time.sleep(0.05)

    def _count_fitting(self, most: int) -> int:
        return next((n for n in range(most, 0, -1) if self._fits(n)), 0)

    def _answer(self, taken: dict[int, list[str]]) -> Agreement:
        """Tells those that take part who all are; returns this host's own part."""
        workers = [worker for rank in taken for worker in taken[rank]]
        answer: dict[str, Any] = {"workers": workers}
        if not self._shared_token:
            answer["token"] = self._token
        first = 0
        for rank, own in taken.items():
            if rank:
                place = {"first_rank": first, "num_workers": len(own)}
                channel = self._waiting.pop(rank).channel
                _send(channel, answer | place)
                self._connections.callback(channel.close)
            first += len(own)
        return Agreement(workers, 0, len(taken[0]), self._token)


def _send(channel: Channel, message: dict[str, Any]) -> None:
    """Answers a host that waits; whether it is gone shows later."""
    with contextlib.suppress(OSError, ValueError):
        channel.restart_clock()
        channel.send(message)


def _names(ranks: set[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
