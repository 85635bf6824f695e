"""Lines of JSON between the processes of a run, on ports that anybody may reach.

Messages are bounded in bytes and time. Processes that share a token authenticate their
messages: each side of a connection sends a nonce first, and each message begins with the
HMAC-SHA256 of the other side's nonce and the text. The token itself is never sent, and a
recorded message is not valid on another connection. Without a token nothing is
authenticated.
"""

import contextlib
import hashlib
import hmac
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

SECONDS = 5.0  # that a connection may take, unless told otherwise
_MAX_CONNECTIONS = 128  # at a time; others are closed, and their peers try again
_POLL_SECONDS = 0.1
_NO_PROOF = b"-"
_KEEP_ALIVE = {  # seconds, seconds, probes
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
}


class Channel:
    """One connection between two processes of a run.

    Attributes:
      peer_address: the other side's IP address; an IPv4 one also where the socket has
        both kinds.
      is_proven: whether the sender of the last message knows the token.
    """

    def __init__(
        self, connection: socket.socket, *, token: str, seconds: float = SECONDS
    ) -> None:
        self.peer_address = connection.getpeername()[0].removeprefix("::ffff:")
        self.is_proven = False
        self._connection = connection
        # A broken connection is noticed in 25 seconds, also while nothing is sent.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._token = token.encode()
        self._deadline = time.monotonic() + seconds
        self._nonce = secrets.token_hex(16).encode()
        self._peer_nonce: bytes | None = None
        self._received = b""
        self._send_line(self._nonce)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message.

        Raises:
          OSError: the other side is gone, or takes nothing.
          ValueError: it does not speak as we do.
        """
        nonce = self._receive_nonce()
        text = json.dumps(message).encode()
        proof = self._prove(nonce, text) if self._token else _NO_PROOF
        self._send_line(proof + b" " + text)

    def receive(
        self, max_bytes: int, *, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Returns the next message.

        Args:
          max_bytes: that it may have.
          check: called ten times a second while nothing comes; may raise.

        Raises:
          OSError: nothing came in time, or the other side is gone.
          ValueError: what came is too long, or no JSON object.
        """
        self._receive_nonce(check)
        proof, _, text = self._receive_line(max_bytes, check).partition(b" ")
        self.is_proven = bool(self._token) and hmac.compare_digest(
            proof, self._prove(self._nonce, text)
        )
        return parse_object(text)

    def restart_clock(self, seconds: float = SECONDS) -> None:
        """Gives the connection so many seconds from now on."""
        self._deadline = time.monotonic() + seconds

    def is_open(self) -> bool:
        """Whether the other side is still there, as far as is known without asking it."""
        try:
            self._connection.settimeout(0)
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _prove(self, nonce: bytes, text: bytes) -> bytes:
        digest = hmac.new(self._token, nonce + b" " + text, hashlib.sha256)
        return digest.hexdigest().encode()

    def _receive_nonce(self, check: Callable[[], None] = lambda: None) -> bytes:
        if self._peer_nonce is None:
            nonce = self._receive_line(32, check)
            if not re.fullmatch(rb"[0-9a-f]{32}", nonce):
                raise ValueError("what is there is no process of this run")
            self._peer_nonce = nonce
        return self._peer_nonce

    def _send_line(self, line: bytes) -> None:
        self._connection.settimeout(max(self._deadline - time.monotonic(), 1e-3))
        self._connection.sendall(line + b"\n")

    def _receive_line(self, max_bytes: int, check: Callable[[], None]) -> bytes:
        while b"\n" not in self._received:
            if len(self._received) > max_bytes:
                raise ValueError(f"a message of more than {max_bytes} bytes came")
            check()
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no whole message came in time")
            self._connection.settimeout(min(left, _POLL_SECONDS))
            with contextlib.suppress(TimeoutError):
                chunk = self._connection.recv(1 << 16)
                if not chunk:
                    raise ConnectionError("it hangs up, as one of another launch does")
                self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        if len(line) > max_bytes:
            raise ValueError(f"a message of more than {max_bytes} bytes came")
        return line


def parse_object(text: bytes) -> dict[str, Any]:
    """Parses JSON that anybody may have sent.

    Raises:
      ValueError: it is no object, too deep, or has numbers that JSON does not know.
    """
    try:
        message = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("a message is nested too deep") from None
    if not isinstance(message, dict):
        raise ValueError("a message is no JSON object")
    return message


def connect(
    address: tuple[str, int], *, token: str, seconds: float = SECONDS
) -> Channel:
    """Opens a connection; raises `OSError` if nobody takes it within 5 seconds."""
    connection = socket.create_connection(address, timeout=min(seconds, SECONDS))
    try:
        return Channel(connection, token=token, seconds=seconds)
    except BaseException:
        connection.close()
        raise


def describe_trouble(error: Exception) -> str:
    """Returns why a host was not reached."""
    if isinstance(error, socket.gaierror):
        return f"its name has no address here ({error.strerror})"
    return str(error)


@contextlib.contextmanager
def listen(
    port: int,
    handle: Callable[[Channel], bool | None],
    *,
    token: str,
    patience: float = 0.0,
) -> Iterator[None]:
    """Has connections to a port of this host handled, each in a thread of its own.

    Args:
      port: on all interfaces.
      handle: takes a connection; what it raises as `OSError`, `ValueError` or
        `RecursionError` ends that connection alone. True keeps the connection open.
      token: of the launch; empty if it has none.
      patience: seconds that the port may take to be free.

    Raises:
      OSError: the port is taken.
    """
    slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
    is_over = threading.Event()

    def serve(connection: socket.socket) -> None:
        is_kept: bool | None = False
        try:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                is_kept = handle(Channel(connection, token=token))
        finally:
            slots.release()
            if not is_kept:
                connection.close()

    def accept(server: socket.socket) -> None:
        while not is_over.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            except OSError:  # it is gone again, or no file is left to open
                time.sleep(_POLL_SECONDS)
                continue
            if slots.acquire(blocking=False):
                threading.Thread(target=serve, args=(connection,), daemon=True).start()
            else:
                connection.close()

    with _bind(port, patience=patience) as server:
        server.settimeout(0.02)  # how soon the port is free at the end
        thread = threading.Thread(target=accept, args=(server,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def _bind(port: int, *, patience: float) -> socket.socket:
    deadline = time.monotonic() + patience
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port),
                    family=socket.AF_INET6,
                    dualstack_ipv6=True,
                    backlog=_MAX_CONNECTIONS,
                )
            return socket.create_server(("", port), backlog=_MAX_CONNECTIONS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"a message holds {name}")
