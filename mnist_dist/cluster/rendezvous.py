"""The launchers of several hosts agree, before each start, on the list of all workers.

The first host's launcher listens as long as the launch lasts; those of the other hosts
come to it before each start. Which hosts take part may change from start to start.
"""

import dataclasses
from types import TracebackType
from typing import Protocol, TypeGuard


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

    def is_stop_wanted(self) -> bool:
        """Whether this host's workers are better stopped, for a start with others."""

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

    def is_stop_wanted(self) -> bool:
        """There are no others."""
        return False

    def end(self, code: int) -> None:
        """Tells nobody."""


def is_whole(value: object, *, below: int) -> TypeGuard[int]:
    """Whether this, which anybody may have sent, is a whole number from 0."""
    return isinstance(value, int) and value is not True and 0 <= value < below


def addresses(host: str, ports: list[int]) -> list[str]:
    """Returns `host:port` for each port."""
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for port in ports]
