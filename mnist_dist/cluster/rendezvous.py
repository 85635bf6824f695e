"""The launchers of several hosts agree, before each start, on the list of all workers.

The first host's launcher listens as long as the launch lasts; those of the other hosts
come to it before each start. Which hosts take part may change from start to start.
"""

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TypeGuard

from mnist_dist.cluster.membership import split_address
from mnist_dist.cluster.messages import Channel, connect, describe_trouble
from mnist_dist.cluster.reminder import Reminder
from mnist_dist.errors import PeerError

_MAX_ANSWER = 1 << 22  # bytes
_FAREWELL_SECONDS = 1.0  # that the first host may take to hear that this one leaves
_UNLIMITED = 1e9  # seconds; a broken connection is noticed by itself


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What the launchers of all hosts know when they start their workers.

    Attributes:
      workers: `host:port` of all workers by rank.
      first_rank: rank of this host's first worker.
      num_workers: of this host; fewer than it has places for where not all of them can
        share the batch out equally.
      token: that the workers prove themselves with.
    """

    workers: list[str]
    first_rank: int
    num_workers: int
    token: str


class LaunchEnded(Exception):
    """The first host's launcher has ended the launch.

    Attributes:
      code: the exit code that it ended with.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"the first host's launcher has ended with code {code}")
        self.code = code


@dataclasses.dataclass(frozen=True)
class HostsOptions:
    """What a launcher was told of the hosts.

    Attributes:
      least: hosts that the run needs at least.
      most: hosts that it can have; also the number that it begins with, if all come.
      node_rank: place of this host; the first is 0.
      master: host and port where the first host's launcher listens.
      timeout: seconds to wait for hosts without which nothing can start.
      rejoin_timeout: seconds to wait for others, where `least` have come.
    """

    least: int = 1
    most: int = 1
    node_rank: int = 0
    master: tuple[str, int] = ("", 0)
    timeout: float = 300.0
    rejoin_timeout: float = 60.0

    @property
    def is_elastic(self) -> bool:
        """Whether the number of hosts may change."""
        return self.least < self.most

    @property
    def longest_wait(self) -> float:
        """Seconds after which too few hosts end the launch."""
        return (
            max(self.timeout, self.rejoin_timeout) if self.is_elastic else self.timeout
        )


class Host(Protocol):
    """A host of a launch, as its launcher sees it."""

    def __enter__(self) -> "Host":
        """Opens what the other hosts need."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""

    def agree(self, ports: list[int]) -> Agreement:
        """Returns when all that take part know where all workers are.

        Args:
          ports: that this host's workers can have.

        Raises:
          PeerError: other hosts did not come in time, or the wait was stopped.
          LaunchEnded: the first host's launcher has ended.
        """

    def has_newcomer(self) -> bool:
        """Whether a host waits with which more workers could compute."""

    def end(self, code: int) -> None:
        """Tells the other hosts that this one ends with `code`."""


class OneHost:
    """The only host of a launch."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __enter__(self) -> "OneHost":
        """Opens nothing."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes nothing."""

    def agree(self, ports: list[int]) -> Agreement:
        """Returns where the workers of this host are."""
        workers = addresses("127.0.0.1", ports)
        return Agreement(workers, 0, len(workers), self._token)

    def has_newcomer(self) -> bool:
        """There are no others."""
        return False

    def end(self, code: int) -> None:
        """Tells nobody."""


class OtherHost:
    """A host that is not the first: it goes to the first host's launcher."""

    def __init__(
        self,
        options: HostsOptions,
        *,
        shared_token: str,
        is_stopping: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """Connects to nobody yet.

        Args:
          options: of the launch.
          shared_token: that all launchers were started with: the first host must know
            it. Without one, whoever listens there is believed.
          is_stopping: whether to wait no longer.
          say: tells a person what is waited for.
        """
        self._options = options
        self._shared_token = shared_token
        self._is_stopping = is_stopping
        self._say = say
        self._where = f"{options.master[0]}:{options.master[1]}"
        self._trouble = "no answer"
        self._heard_since: float | None = None
        self._has_ended = False

    def __enter__(self) -> "OtherHost":
        """Opens nothing."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes nothing."""

    def has_newcomer(self) -> bool:
        """Only the first host knows."""
        return False

    def agree(self, ports: list[int]) -> Agreement:
        """Tells the first host this host's ports, and learns all workers.

        In an elastic launch it waits without limit once the first host has heard it: a
        host that comes while a run goes on may have to wait for its next checkpoint, and
        one that is over for a place.
        """
        deadline = time.monotonic() + self._options.timeout
        reminder, is_unknown = Reminder(), False

        def wait() -> None:
            if self._is_stopping():
                raise PeerError("stopped while waiting for the other hosts")
            if reminder.is_due():
                self._say(f"waiting for the first host, {self._where}: {self._trouble}")

        while (left := deadline - time.monotonic()) > 0:
            try:
                return self._ask(ports, seconds=left, wait=wait)
            except (OSError, ValueError) as error:
                self._trouble = describe_trouble(error)
                if isinstance(error, socket.gaierror) and not is_unknown:
                    is_unknown = True  # told at once: it may be misspelt
                    self._say(
                        f"waiting for the first host, {self._where}: {self._trouble}"
                    )
            if self._heard_since is not None:  # that time does not count
                deadline += time.monotonic() - self._heard_since
                self._heard_since = None
            wait()
            time.sleep(0.2)
        raise PeerError(
            f"--master_addr: {self._where} was not reached within --cluster_timeout: "
            f"{self._trouble}"
        )

    def end(self, code: int) -> None:
        """Tells the first host, if it is there, not to wait for this one."""
        if code == 0 or self._has_ended:
            return
        seconds = _FAREWELL_SECONDS
        with (
            contextlib.suppress(OSError, ValueError),
            self._connect(seconds) as channel,
        ):
            channel.send({"node_rank": self._options.node_rank, "leaves": True})

    def _connect(self, seconds: float) -> contextlib.closing[Channel]:
        channel = connect(
            self._options.master, token=self._shared_token, seconds=seconds
        )
        return contextlib.closing(channel)

    def _ask(
        self, ports: list[int], *, seconds: float, wait: Callable[[], None]
    ) -> Agreement:
        with self._connect(seconds) as channel:
            channel.send({"node_rank": self._options.node_rank, "ports": ports})
            self._trouble = "not all hosts have come"
            if self._options.is_elastic:
                channel.restart_clock(_UNLIMITED)
                self._heard_since = time.monotonic()
            answer = channel.receive(_MAX_ANSWER, check=wait)
            if self._shared_token and not channel.is_proven:
                raise ValueError("it does not know the launch's token")
        if is_whole(code := answer.get("ended"), below=256):
            self._has_ended = True
            raise LaunchEnded(code)
        return _checked_agreement(answer, ports, shared_token=self._shared_token)


def _checked_agreement(
    answer: dict[str, Any], ports: list[int], *, shared_token: str
) -> Agreement:
    """Checks what the first host's launcher sent; raises `ValueError`."""
    workers = answer.get("workers")
    first, count = answer.get("first_rank"), answer.get("num_workers")
    if not isinstance(workers, list):
        raise ValueError("its answer has no list of workers")
    found = [split_address(str(worker))[1] for worker in workers]
    if not is_whole(first, below=len(found)) or not is_whole(count, below=1 << 16):
        raise ValueError("its answer lacks this host's place")
    if not count or found[first : first + count] != ports[:count]:
        raise ValueError("its answer lacks this host's workers")
    token = shared_token or str(answer.get("token", ""))
    return Agreement([str(worker) for worker in workers], first, count, token)


def is_whole(value: object, *, below: int) -> TypeGuard[int]:
    """Whether this, which anybody may have sent, is a whole number from 0."""
    return isinstance(value, int) and value is not True and 0 <= value < below


def addresses(host: str, ports: list[int]) -> list[str]:
    """Returns `host:port` for each port."""
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for port in ports]
