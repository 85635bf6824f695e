"""What a port of ours bears, from anybody who reaches it."""

import contextlib
import json
import os
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_dist.cluster import other_host
from mnist_dist.cluster.first_host import FirstHost
from mnist_dist.cluster.meeting import Meeting
from mnist_dist.cluster.membership import Cluster, split_address
from mnist_dist.cluster.messages import connect, listen, parse_object
from mnist_dist.cluster.rendezvous import HostsOptions

WORKERS = ("127.0.0.1:1001", "127.0.0.1:1002")
GREETING = {"workers": list(WORKERS), "rank": 1, "greeting": {"seed": 1}}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def port():
    return free_port()


def test_messages_arrive_and_are_proven_by_the_token(port):
    received = []

    def answer(channel):
        received.append((channel.receive(100), channel.is_proven))
        channel.send({"answer": 2})

    with listen(port, answer, token="secret"):
        for token in ("secret", "guess", ""):
            with contextlib.closing(connect(("127.0.0.1", port), token=token)) as peer:
                peer.send({"question": 1})
                assert peer.receive(100) == {"answer": 2}
                assert peer.is_proven is (token == "secret")
    assert received == [({"question": 1}, proven) for proven in (True, False, False)]


def wait_until(is_reached):
    deadline = time.monotonic() + 10
    while not is_reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_overheard_proves_nothing(port):
    proofs, seen = [], []

    def overhear(channel):
        seen.append((channel.receive(1000), channel.is_proven))
        proofs.append(channel)

    with listen(port, overhear, token="secret"):
        with contextlib.closing(connect(("127.0.0.1", port), token="secret")) as peer:
            sent = []
            send_line = peer._send_line
            peer._send_line = lambda line: (sent.append(line), send_line(line))
            peer.send({"question": 1})
        wait_until(lambda: len(seen) == 1)
        with socket.create_connection(("127.0.0.1", port)) as forger:
            forger.sendall(b"0" * 32 + b"\n" + sent[0] + b"\n")
            forger.shutdown(socket.SHUT_WR)
            while forger.recv(1000):
                pass
        wait_until(lambda: len(seen) == 2)
    assert seen == [({"question": 1}, True), ({"question": 1}, False)]


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"1", b"{", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 100_000,
     b'{"a": ' * 100_000, b"\xff", b'{"a": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_object_of_json_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_object(text)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([1, 2, 1002, 65536, *WORKERS]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rank", "workers", "greeting", "node_rank", "ports", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=8,
)
lines = json_values.map(lambda value: json.dumps(value).encode()) | st.binary(
    max_size=200
)
beginnings = st.sampled_from([b"", b"0" * 32 + b"\n- ", b"0" * 32 + b"\n" + b"0" * 65])


def send(port, data):
    """Sends bytes and returns when the other side has closed the connection."""
    with (
        socket.create_connection(("127.0.0.1", port), 5) as stranger,
        contextlib.suppress(OSError),
    ):
        stranger.sendall(data)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(1 << 16):
            pass


@settings(max_examples=200, deadline=None, database=None)
@given(
    workers=json_values | st.lists(st.sampled_from([*WORKERS, "", 7]), max_size=3),
    first=json_values | st.integers(-1, 2),
    count=json_values | st.integers(-1, 2),
)
def test_any_answer_has_this_hosts_workers_or_is_refused(workers, first, count):
    answer = {"workers": workers, "first_rank": first, "num_workers": count}
    try:
        found = other_host._checked_agreement(answer, [1001, 1002], shared_token="")
    except ValueError:
        return
    mine = found.workers[found.first_rank :][: found.num_workers]
    ports = [split_address(worker)[1] for worker in mine]
    assert ports == [1001, 1002][: found.num_workers] != []
    for worker in found.workers:
        split_address(worker)


@pytest.mark.parametrize("token", ["", "secret"])
def test_any_bytes_do_no_harm(token, monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    meeting = Meeting(Cluster("test", WORKERS, 0), greeting={"seed": 1}, token=token)
    ports = free_port(), free_port()
    first_host = FirstHost(
        HostsOptions(2, 2, 0, ("127.0.0.1", ports[1]), timeout=10.0),
        shared_token=token,
        new_token="",
        fits=lambda num_workers: True,
        is_stopping=lambda: False,
        say=lambda text: None,
    )

    # FUZZ_EXAMPLES=100000 tries so many, as in test_fuzzed_files.py.
    @settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
        deadline=None,
        database=None,
    )
    @given(beginning=beginnings, line=lines)
    def fuzz(beginning, line):
        for port in ports:
            send(port, beginning + line + b"\n")

    with listen(ports[0], meeting.reply, token=token), first_host:
        fuzz()
        assert meeting.difference is None
        with contextlib.closing(connect(("127.0.0.1", ports[0]), token=token)) as peer:
            peer.send(GREETING)
            assert peer.receive(1 << 16) == GREETING | {"rank": 0}
        channel = connect(("127.0.0.1", ports[1]), token=token)
        channel.send({"node_rank": 1, "ports": [1002]})
        assert first_host.agree([1001]).workers == list(WORKERS)
        channel.close()
    assert raised == []
