import socket
import threading
import time

import pytest

from mnist_dist.cluster.meeting import meet_peers
from mnist_dist.cluster.membership import Cluster
from mnist_dist.errors import InputError, PeerError


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    for s in sockets:
        s.close()
    return addresses


def meet_all(delays, greetings=None, timeout=5.0):
    """Lets a thread for each worker meet the others; returns what each raised."""
    addresses = free_addresses(len(delays))
    outcomes = [None] * len(delays)

    def meet(rank):
        time.sleep(delays[rank])
        greeting = greetings[rank] if greetings else {}
        try:
            meet_peers(
                Cluster("test", addresses, rank), greeting=greeting, timeout=timeout
            )
        except Exception as error:
            outcomes[rank] = error
        else:
            # Free for TensorFlow at once.
            port = int(addresses[rank].split(":")[1])
            socket.create_server(("", port)).close()

    threads = [threading.Thread(target=meet, args=(r,)) for r in range(len(delays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return addresses, outcomes


@pytest.mark.parametrize("delays", [(0, 0), (0, 0.7), (0.7, 0), (0, 0.3, 0, 0.6)])
def test_workers_meet_whoever_comes_first(delays):
    assert meet_all(delays)[1] == [None] * len(delays)


def test_missing_peer_is_named_within_the_timeout():
    addresses = free_addresses(3)
    began = time.monotonic()
    errors = []

    def meet(rank):
        with pytest.raises(PeerError) as error:
            meet_peers(Cluster("test", addresses, rank), greeting={}, timeout=1)
        errors.append(str(error.value))

    threads = [threading.Thread(target=meet, args=(r,)) for r in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 3
    assert len(errors) == 2
    for error in errors:
        assert f"worker 1 ({addresses[1]}) was not reached within 1 s" in error


def test_worker_started_otherwise_is_refused_by_all():
    greetings = [{"seed": 1, "b": 2}, {"seed": 2, "b": 2}]
    _, outcomes = meet_all((0, 0.3), greetings)
    assert [type(o) for o in outcomes] == [InputError, InputError]
    assert "seed is 1 here, 2 there" in str(outcomes[0])


def test_stranger_on_the_port_is_no_peer_and_does_no_harm():
    addresses = free_addresses(2)
    stop = threading.Event()

    def pester():
        port = int(addresses[0].split(":")[1])
        while not stop.is_set():
            for junk in (b"", b"GET / HTTP/1.0\r\n\r\n", b"{}\n", b'{"rank": []}\n'):
                try:
                    with socket.create_connection(("127.0.0.1", port), 1) as s:
                        s.sendall(junk)
                except OSError:
                    pass

    thread = threading.Thread(target=pester)
    thread.start()
    try:
        with pytest.raises(PeerError, match="worker 1"):
            meet_peers(Cluster("test", addresses, 0), greeting={}, timeout=1)
    finally:
        stop.set()
        thread.join()


def test_port_in_use_is_named():
    addresses = free_addresses(2)
    with (
        socket.create_server(("", int(addresses[0].split(":")[1]))),
        pytest.raises(PeerError, match=rf"worker 0 \({addresses[0]}\) cannot listen"),
    ):
        meet_peers(Cluster("test", addresses, 0), greeting={}, timeout=0.5)
