import contextlib
import functools
import socket
import threading
import time

import pytest

from mnist_dist.cluster import rendezvous
from mnist_dist.cluster.rendezvous import Agreement, agree_with_hosts
from mnist_dist.errors import PeerError


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def agree(
    ports_by_host,
    delays,
    *,
    address="127.0.0.1",
    port=None,
    timeout=10.0,
    shared_tokens=("", "", ""),
):
    """Lets a thread for each host agree with the others; returns what each learnt."""
    master, outcomes = (address, port or free_port()), {}

    def run(node_rank):
        time.sleep(delays[node_rank])
        try:
            outcomes[node_rank] = agree_with_hosts(
                ports_by_host[node_rank],
                nnodes=len(ports_by_host),
                node_rank=node_rank,
                master=master,
                timeout=timeout,
                shared_token=shared_tokens[node_rank],
                new_token=f"of {node_rank}",
            )
        except PeerError as error:
            outcomes[node_rank] = error

    threads = [threading.Thread(target=run, args=(r,)) for r in range(len(delays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.parametrize("delays", [(0, 0.3, 0.1), (0.5, 0, 0.2)])
def test_hosts_agree_whoever_comes_first(delays):
    outcomes = agree([[1001], [1002, 1003], [1004]], delays)
    workers = [f"127.0.0.1:{port}" for port in range(1001, 1005)]
    assert outcomes == {
        rank: Agreement(workers, first, "of 0")
        for rank, first in ((0, 0), (1, 1), (2, 3))
    }


def test_hosts_that_share_a_token_agree_and_others_are_none_of_them():
    outcomes = agree([[1001], [1002]], (0, 0), shared_tokens=("secret", "secret"))
    assert {agreement.token for agreement in outcomes.values()} == {"secret"}
    outcomes = agree(
        [[1001], [1002]], (0, 0), shared_tokens=("secret", "guess"), timeout=0.5
    )
    assert [type(outcome) for outcome in outcomes.values()] == [PeerError, PeerError]


def test_ipv6_hosts_agree():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    outcomes = agree([[1001], [1002]], (0, 0), address="::1")
    workers = ["[::1]:1001", "[::1]:1002"]
    assert [outcomes[rank].workers for rank in range(2)] == [workers, workers]


def test_missing_host_is_named_by_the_first():
    (error,) = agree([[1001], [1002], [1003]], (0,), timeout=0.5).values()
    assert "host 1, 2 of 3 did not come" in str(error)


def test_missing_first_host_is_named():
    port = free_port()
    with pytest.raises(PeerError, match=f"127.0.0.1:{port} was not reached"):
        agree_with_hosts(
            [1001], nnodes=2, node_rank=1, master=("127.0.0.1", port), timeout=0.5
        )


def test_host_that_waits_for_a_third_says_so():
    outcomes = agree([[1001], [1002], [1003]], (0, 0), timeout=0.5)
    assert isinstance(outcomes[1], PeerError)


def test_port_in_use_is_named():
    with (
        socket.create_server(("", 0)) as taken,
        pytest.raises(PeerError, match="--master_port: cannot listen"),
    ):
        agree_with_hosts(
            [1001],
            nnodes=2,
            node_rank=0,
            master=("127.0.0.1", taken.getsockname()[1]),
            timeout=5,
        )


STRANGERS = [
    b"",
    b"GET / HTTP/1.0\r\n",
    b"[" * 100_000,
    b'{"node_rank": 9}',
    b'{"node_rank": Infinity, "ports": [1]}',
    b'{"node_rank": 1e400, "ports": [1]}',
    b'{"node_rank": true, "ports": [1]}',
    b'{"node_rank": 1, "ports": []}',
    b'{"node_rank": 1, "ports": [0]}',
    b'{"node_rank": 1, "ports": "1002"}',
    b'{"node_rank": 1, "ports": [1002], "more": "' + b"x" * (1 << 17) + b'"}',
]


def test_stranger_does_no_harm():
    port = free_port()
    idle = []

    def pester():
        for junk in STRANGERS:
            for first in (b"", b"0" * 32 + b"\n- "):  # as a launcher begins
                with contextlib.suppress(OSError):
                    stranger = socket.create_connection(("127.0.0.1", port), 5)
                    stranger.sendall(first + junk + b"\n")
                    stranger.close()
            idle.append(socket.create_connection(("127.0.0.1", port), 5))

    timer = threading.Timer(0.3, pester)
    timer.start()
    outcomes = agree([[1001], [1002]], (0, 1.5), port=port)
    timer.join()
    for stranger in idle:
        stranger.close()
    workers = ["127.0.0.1:1001", "127.0.0.1:1002"]
    assert [outcomes[rank].workers for rank in range(2)] == [workers, workers]


def test_one_byte_now_and_then_holds_nobody_up():
    port = free_port()
    is_over = threading.Event()

    def trickle():
        time.sleep(0.2)
        with (
            socket.create_connection(("127.0.0.1", port), 5) as stranger,
            contextlib.suppress(OSError),
        ):
            while not is_over.wait(0.1):
                stranger.sendall(b"0")

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    outcomes = agree([[1001], [1002]], (0,), port=port, timeout=1.0)
    seconds = time.monotonic() - began
    is_over.set()
    thread.join()
    assert isinstance(outcomes[0], PeerError)
    assert seconds < 3


def test_who_is_waited_for_is_said(monkeypatch):
    monkeypatch.setattr(
        rendezvous, "Reminder", functools.partial(rendezvous.Reminder, first=0.1)
    )
    said = []
    for node_rank, address in ((0, "127.0.0.1"), (1, "no-such-host.invalid")):
        with pytest.raises(PeerError):
            agree_with_hosts(
                [1001],
                nnodes=2,
                node_rank=node_rank,
                master=(address, free_port()),
                timeout=0.5,
                say=said.append,
            )
    assert said[0].startswith("waiting on port ")
    assert said[0].endswith(" for host 1")
    assert said[1].startswith("waiting for the first host, no-such-host.invalid:")


@pytest.mark.parametrize("node_rank", [0, 1])
def test_wait_ends_when_told_to(node_rank):
    with pytest.raises(PeerError, match="stopped while waiting"):
        agree_with_hosts(
            [1001],
            nnodes=2,
            node_rank=node_rank,
            master=("127.0.0.1", free_port()),
            timeout=60,
            is_stopping=lambda: True,
        )


def test_first_host_without_an_address_is_told_at_once():
    said = []
    with pytest.raises(PeerError, match="its name has no address here"):
        agree_with_hosts(
            [1001],
            nnodes=2,
            node_rank=1,
            master=("no-such-host.invalid", 1),
            timeout=1.0,  # before the first reminder
            say=said.append,
        )
    (line,) = said
    assert "waiting for the first host, no-such-host.invalid:1: its name has" in line
