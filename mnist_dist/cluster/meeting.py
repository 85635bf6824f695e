"""Makes sure that all workers are there and agree, before TensorFlow connects them."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from mnist_dist.cluster.membership import TOKEN, Cluster, split_address
from mnist_dist.cluster.messages import Channel, connect, describe_trouble, listen
from mnist_dist.cluster.reminder import Reminder
from mnist_dist.errors import InputError, PeerError

_PORT_PATIENCE = 5.0  # seconds a port may take to be free after a restart
_FAREWELL_SECONDS = 2.0  # in which a worker with other settings still answers
_MAX_QUOTED = 200  # characters of a peer's value in an error


def meet_peers(
    cluster: Cluster,
    *,
    greeting: Mapping[str, object],
    timeout: float,
    is_stopping: Callable[[], bool] = lambda: False,
    token: str | None = None,
) -> None:
    """Returns when every worker has reached every other on its cluster port.

    TensorFlow itself waits for a missing worker without end, and does not say for
    which. Here each worker listens on its own port and asks all others. It returns when
    all have answered and all have asked: then nobody needs its port any more, and
    TensorFlow can have it. The workers may start in any order.

    A difference is reported only if it comes from a peer that knows the token. Without
    a token, only the answer from the peer's own address counts.

    Args:
      cluster: with several workers.
      greeting: what must be the same on all of them, as JSON values by name.
      timeout: seconds.
      is_stopping: whether to wait no longer.
      token: of the launch; None takes it from the environment; empty if there is none.

    Raises:
      PeerError: a peer could not be reached, or could not reach this worker, or the
        port is taken, or the wait was stopped.
      InputError: a peer's greeting is another.
    """
    token = os.environ.get(TOKEN, "") if token is None else token
    meeting = Meeting(cluster, greeting=greeting, token=token)
    deadline = time.monotonic() + timeout
    address = cluster.workers[cluster.rank]
    port = split_address(address)[1]
    try:
        with listen(
            port,
            meeting.reply,
            token=token,
            patience=min(_PORT_PATIENCE, timeout),
        ):
            for rank in meeting.peers:
                threading.Thread(
                    target=meeting.ask, args=(rank, deadline), daemon=True
                ).start()
            meeting.wait(deadline, timeout=timeout, is_stopping=is_stopping)
    except OSError as error:
        raise PeerError(
            f"worker {cluster.rank} ({address}) cannot listen on port {port} of this "
            f"host: {error.strerror or error}"
        ) from error


class Meeting:
    """What is known of the peers; its methods run in a thread for each peer.

    Attributes:
      message: what this worker tells its peers.
      difference: what a peer was told otherwise; None if nothing is known of that.
    """

    def __init__(
        self, cluster: Cluster, *, greeting: Mapping[str, object], token: str
    ) -> None:
        self.cluster = cluster
        self.peers = [r for r in range(cluster.num_workers) if r != cluster.rank]
        self.message: dict[str, Any] = {
            "workers": list(cluster.workers),
            "rank": cluster.rank,
            "greeting": json.loads(json.dumps(dict(greeting))),  # as it arrives
        }
        # The messages of the peers are about as long.
        self._max_bytes = 2 * len(json.dumps(self.message)) + (1 << 16)
        self._token = token
        self._changed = threading.Condition()
        self._answered: set[int] = set()
        self._asked: set[int] = set()
        self._told: set[int] = set()  # to whom this worker has answered
        self._unknown: set[int] = set()  # whose host has no address
        self._trouble = dict.fromkeys(self.peers, "no answer")
        self.difference: str | None = None

    def ask(self, rank: int, deadline: float) -> None:
        """Asks one peer until it answers."""
        address = split_address(self.cluster.workers[rank])
        while (left := deadline - time.monotonic()) > 0:
            try:
                channel = connect(address, token=self._token, seconds=min(left, 5))
                try:
                    channel.send(self.message)
                    message = channel.receive(self._max_bytes)
                finally:
                    channel.close()
                if self._token and not channel.is_proven:
                    raise ValueError(
                        f"what listens there does not know the launch's {TOKEN}"
                    )
                if _rank_of(message) != rank:
                    raise ValueError("what listens there is no worker of this run")
                self._note(self._answered, rank, self._differences(message))
                return
            except (OSError, ValueError, RecursionError) as error:
                self._trouble[rank] = describe_trouble(error)
                if isinstance(error, socket.gaierror) and rank not in self._unknown:
                    # Told at once: it may be misspelt. A scheduler may yet publish it.
                    self._unknown.add(rank)
                    logging.warning(
                        "waiting for worker %s: %s",
                        self._name(rank),
                        self._trouble[rank],
                    )
            time.sleep(0.1)

    def reply(self, channel: Channel) -> None:
        """Answers one connection if it is from a peer."""
        message = channel.receive(self._max_bytes)
        rank = _rank_of(message)
        if rank not in self.peers or (self._token and not channel.is_proven):
            return
        channel.send(self.message)
        self._told.add(rank)
        differences = self._differences(message)
        if channel.is_proven or not differences:
            self._note(self._asked, rank, differences)

    def wait(
        self, deadline: float, *, timeout: float, is_stopping: Callable[[], bool]
    ) -> None:
        """Returns when all have answered and asked."""
        needed = set(self.peers)
        with self._changed:
            reminder = Reminder()
            while time.monotonic() < deadline and not (
                self.difference or self._answered == self._asked == needed
            ):
                missing = sorted(needed - (self._answered & self._asked))
                if is_stopping():
                    names = ", ".join(map(self._name, missing))
                    raise PeerError(f"stopped while waiting for worker {names}")
                if reminder.is_due():
                    why = [f"{self._name(r)}: {self._trouble[r]}" for r in missing]
                    logging.warning("waiting for worker %s", "; ".join(why))
                self._changed.wait(0.2)
            if self.difference:
                # Keep the port open until the peers have seen the difference too.
                last = time.monotonic() + _FAREWELL_SECONDS
                while self._told != needed and time.monotonic() < last:
                    self._changed.wait(0.05)
                raise InputError(self.difference)
            for rank in sorted(needed - (self._answered & self._asked)):
                if rank in self._answered:
                    raise PeerError(
                        f"worker {self._name(rank)} answers, but has not reached this "
                        f"worker at {self.cluster.workers[self.cluster.rank]} within "
                        f"{timeout:g} seconds (--cluster_timeout)"
                    )
                raise PeerError(
                    f"worker {self._name(rank)} was not reached within {timeout:g} "
                    f"seconds (--cluster_timeout): {self._trouble[rank]}"
                )

    def _name(self, rank: int) -> str:
        return f"{rank} ({self.cluster.workers[rank]})"

    def _differences(self, message: dict[str, Any]) -> list[str]:
        """Says what a peer was told otherwise than this worker."""
        mine, theirs = self.message["greeting"], message.get("greeting")
        theirs = theirs if isinstance(theirs, dict) else {}
        pairs = {"--worker_hosts": (self.message["workers"], message.get("workers"))}
        for name in sorted(mine.keys() | theirs.keys()):
            pairs[name] = (mine.get(name), theirs.get(name))
        return [
            f"{name} is {_quote(here)} here, {_quote(there)} there"
            for name, (here, there) in pairs.items()
            if here != there
        ]

    def _note(self, ranks: set[int], rank: int, differences: list[str]) -> None:
        with self._changed:
            ranks.add(rank)
            if differences:
                self.difference = (
                    f"worker {rank} was started otherwise than worker "
                    f"{self.cluster.rank}: {'; '.join(differences)}"
                )
            self._changed.notify_all()


def _rank_of(message: dict[str, Any]) -> int:
    rank = message.get("rank")
    return rank if isinstance(rank, int) and not isinstance(rank, bool) else -1


def _quote(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."
