"""The workers of a run meet before TensorFlow connects them."""

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from mnist_dist.cluster.membership import Cluster, split_address
from mnist_dist.errors import InputError, PeerError

_MAX_MESSAGE = 1 << 20  # bytes a peer may send
_PORT_PATIENCE = 5.0  # seconds a port may take to be free after a restart


def meet_peers(
    cluster: Cluster,
    *,
    greeting: Mapping[str, object],
    timeout: float,
    is_stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Returns when every worker has reached every other on its cluster port.

    TensorFlow itself waits without end for a worker that does not come, and cannot
    say for which. A worker listens on its own port and asks all others; it is done
    when all have answered and all have asked, so nobody still needs it when it gives
    the port to TensorFlow. All may start in any order.

    Args:
      cluster: with several workers.
      greeting: what must be the same on all of them, as JSON values by name.
      timeout: seconds.
      is_stopping: whether to wait no longer.

    Raises:
      PeerError: a peer could not be reached, or could not reach this worker, or the
        port is taken, or the wait was stopped.
      InputError: a peer's greeting is another.
    """
    meeting = _Meeting(cluster, greeting=greeting)
    deadline = time.monotonic() + timeout
    with _listen(meeting, patience=min(_PORT_PATIENCE, timeout)):
        for rank in meeting.peers:
            threading.Thread(
                target=meeting.ask, args=(rank, deadline), daemon=True
            ).start()
        meeting.wait(deadline, timeout=timeout, is_stopping=is_stopping)


class _Meeting:
    """What is known of the peers; its methods run in a thread for each peer."""

    def __init__(self, cluster: Cluster, *, greeting: Mapping[str, object]) -> None:
        self.cluster = cluster
        self.peers = [r for r in range(cluster.num_workers) if r != cluster.rank]
        self.message: dict[str, Any] = {
            "workers": list(cluster.workers),
            "rank": cluster.rank,
            "greeting": json.loads(json.dumps(dict(greeting))),  # as it arrives
        }
        self._changed = threading.Condition()
        self._answered: set[int] = set()
        self._asked: set[int] = set()
        self._trouble = dict.fromkeys(self.peers, "no answer")
        self._difference: str | None = None

    def ask(self, rank: int, deadline: float) -> None:
        """Asks one peer until it answers."""
        address = split_address(self.cluster.workers[rank])
        while (left := deadline - time.monotonic()) > 0:
            try:
                with socket.create_connection(address, timeout=min(left, 5)) as peer:
                    _send(peer, self.message)
                    with peer.makefile("rb") as answer:
                        message = _receive(answer)
                if message.get("rank") != rank:
                    raise ValueError("what listens there is no worker of this run")
                self._note(self._answered, message)
                return
            except (OSError, ValueError) as error:
                self._trouble[rank] = str(error)
            time.sleep(0.1)

    def reply(self, connection: socket.socket) -> None:
        """Answers one connection; whoever is no peer gets nothing."""
        connection.settimeout(5)
        with contextlib.suppress(OSError, ValueError):
            with connection.makefile("rb") as question:
                message = _receive(question)
            if message.get("rank") not in self.peers:
                return
            _send(connection, self.message)
            self._note(self._asked, message)

    def wait(
        self, deadline: float, *, timeout: float, is_stopping: Callable[[], bool]
    ) -> None:
        """Returns when all have answered and asked."""
        needed = set(self.peers)
        with self._changed:
            while time.monotonic() < deadline and not (
                self._difference or self._answered == self._asked == needed
            ):
                if is_stopping():
                    missing = needed - (self._answered & self._asked)
                    names = [
                        f"{r} ({self.cluster.workers[r]})" for r in sorted(missing)
                    ]
                    raise PeerError(
                        f"stopped while waiting for worker {', '.join(names)}"
                    )
                self._changed.wait(0.2)
            if self._difference:
                raise InputError(self._difference)
            for rank in sorted(needed - (self._answered & self._asked)):
                name = f"worker {rank} ({self.cluster.workers[rank]})"
                if rank in self._answered:
                    raise PeerError(
                        f"{name} answers, but has not reached this worker at "
                        f"{self.cluster.workers[self.cluster.rank]} within {timeout:g} "
                        "seconds (--cluster_timeout)"
                    )
                raise PeerError(
                    f"{name} was not reached within {timeout:g} seconds "
                    f"(--cluster_timeout): {self._trouble[rank]}"
                )

    def _note(self, ranks: set[int], message: dict) -> None:
        mine, theirs = self.message, message
        flat = {"--worker_hosts": (mine["workers"], theirs.get("workers"))}
        greeting = theirs.get("greeting")
        greeting = greeting if isinstance(greeting, dict) else {}
        for name in sorted(mine["greeting"].keys() | greeting.keys()):
            flat[name] = (mine["greeting"].get(name), greeting.get(name))
        different = [
            f"{name} is {json.dumps(a)} here, {json.dumps(b)} there"
            for name, (a, b) in flat.items()
            if a != b
        ]
        with self._changed:
            ranks.add(message["rank"])
            if different:
                self._difference = (
                    f"worker {message['rank']} was started otherwise than worker "
                    f"{self.cluster.rank}: {'; '.join(different)}"
                )
            self._changed.notify_all()


@contextlib.contextmanager
def _listen(meeting: _Meeting, *, patience: float) -> Iterator[None]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            meeting.reply(self.request)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128
        address_family = (
            socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        )

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    workers, rank = meeting.cluster.workers, meeting.cluster.rank
    port = split_address(workers[rank])[1]
    deadline = time.monotonic() + patience
    while True:
        try:
            server = Server(("", port), Handler)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerError(
                    f"worker {rank} ({workers[rank]}) cannot listen on port {port} of "
                    f"this host: {error.strerror or error}"
                ) from error
            time.sleep(0.2)
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _send(connection: socket.socket, message: dict) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(file: IO[bytes]) -> dict:
    message = json.loads(file.readline(_MAX_MESSAGE))
    if not isinstance(message, dict):
        raise ValueError("what listens there is no worker of this run")
    return message
