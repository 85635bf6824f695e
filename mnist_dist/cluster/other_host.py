"""The launcher of a host that is not the first: it goes to the first one's."""

import contextlib
import math
import socket
import time
from collections.abc import Callable
from typing import Any

from mnist_dist.cluster.membership import split_address
from mnist_dist.cluster.messages import Channel, connect, describe_trouble
from mnist_dist.cluster.reminder import Reminder
from mnist_dist.cluster.rendezvous import (
    Agreement,
    HostsOptions,
    LaunchEnded,
    is_whole,
)
from mnist_dist.errors import PeerError

_MAX_ANSWER = 1 << 22  # bytes
_FAREWELL_SECONDS = 1.0  # that the first host may take to hear that this one leaves
_ALONE_SECONDS = 10.0  # that workers may go on when those of the first host have ended
_UNLIMITED = 1e9  # seconds; a broken connection is noticed by itself


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
        self._channel: Channel | None = None  # open while the first host's workers run
        self._alone_since = math.inf
        self._has_ended = False

    def __enter__(self) -> "OtherHost":
        """Opens nothing."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the connection to the first host."""
        self._hang_up()

    def has_newcomer(self) -> bool:
        """Only the first host knows."""
        return False

    def is_stop_wanted(self) -> bool:
        """Whether the first host's workers have ended some time ago.

        Workers notice that others have ended, but for those that still wait to meet them.
        """
        if self._channel and not self._channel.is_open():
            self._hang_up()
            self._alone_since = time.monotonic()
        return time.monotonic() - self._alone_since > _ALONE_SECONDS

    def agree(self, ports: list[int]) -> Agreement:
        """Tells the first host this host's ports, and learns all workers.

        In an elastic launch it waits without limit once the first host has heard it: a
        host that comes while a run goes on may have to wait for its next checkpoint, and
        one that is over for a place.
        """
        self._hang_up()
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
        with (
            contextlib.suppress(OSError, ValueError),
            contextlib.closing(self._connect(_FAREWELL_SECONDS)) as channel,
        ):
            channel.send({"node_rank": self._options.node_rank, "leaves": True})

    def _connect(self, seconds: float) -> Channel:
        return connect(self._options.master, token=self._shared_token, seconds=seconds)

    def _ask(
        self, ports: list[int], *, seconds: float, wait: Callable[[], None]
    ) -> Agreement:
        with contextlib.ExitStack() as closing:
            channel = closing.enter_context(contextlib.closing(self._connect(seconds)))
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
            agreement = _checked_agreement(
                answer, ports, shared_token=self._shared_token
            )
            closing.pop_all()
            self._channel = channel
            return agreement

    def _hang_up(self) -> None:
        if self._channel:
            self._channel.close()
        self._channel, self._alone_since = None, math.inf


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
