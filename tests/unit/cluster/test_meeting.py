import functools
import socket
import threading
import time

import pytest

from mnist_dist.cluster import meeting
from mnist_dist.cluster.meeting import meet_peers
from mnist_dist.cluster.membership import Cluster, split_address
from mnist_dist.cluster.messages import connect
from mnist_dist.errors import InputError, PeerError


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    for s in sockets:
        s.close()
    return addresses


def meet_all(delays, greetings=None, timeout=5.0, tokens=None, addresses=None):
    """Lets a thread for each worker meet the others; returns what each raised."""
    addresses = addresses or free_addresses(len(delays))
    outcomes = [None] * len(delays)

    def meet(rank):
        time.sleep(delays[rank])
        greeting = greetings[rank] if greetings else {}
        try:
            meet_peers(
                Cluster("test", addresses, rank),
                greeting=greeting,
                timeout=timeout,
                token=tokens[rank] if tokens else "",
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


@pytest.mark.parametrize("tokens", [None, ["secret"] * 2])
def test_worker_started_otherwise_is_refused_by_all(tokens):
    greetings = [{"seed": 1, "b": 2}, {"seed": 2, "b": 2}]
    _, outcomes = meet_all((0, 0.3), greetings, tokens=tokens)
    assert [type(o) for o in outcomes] == [InputError, InputError]
    assert "seed is 1 here, 2 there" in str(outcomes[0])


def test_worker_of_another_launch_is_none_of_ours():
    _, outcomes = meet_all((0, 0), tokens=["secret", "guess"], timeout=1)
    assert [type(o) for o in outcomes] == [PeerError, PeerError]
    assert "it hangs up, as one of another launch does" in str(outcomes[0])


@pytest.mark.parametrize("token", ["", "secret"])
def test_forged_greeting_changes_nothing(token):
    addresses = free_addresses(2)
    forged = {"workers": list(addresses), "rank": 1, "greeting": {"seed": 2}}
    answers = []

    def forge():
        time.sleep(0.3)
        for forgers_token in ("", "guess"):
            channel = connect(split_address(addresses[0]), token=forgers_token)
            channel.send(forged)
            try:
                answers.append(channel.receive(1 << 20))
            except ConnectionError:
                answers.append(None)
            channel.close()

    thread = threading.Thread(target=forge)
    thread.start()
    greetings = [{"seed": 1}, {"seed": 1}]
    _, outcomes = meet_all((0, 1), greetings, tokens=[token] * 2, addresses=addresses)
    thread.join()
    assert outcomes == [None, None]
    # Who knows the token alone is told anything where there is one.
    assert [answer is None for answer in answers] == [bool(token)] * 2


def test_who_is_waited_for_is_said(monkeypatch, caplog):
    monkeypatch.setattr(
        meeting, "Reminder", functools.partial(meeting.Reminder, first=0.5)
    )
    addresses = (free_addresses(1)[0], "no-such-host.invalid:2222")
    with caplog.at_level("WARNING", logger="absl"), pytest.raises(PeerError) as error:
        meet_peers(Cluster("test", addresses, 0), greeting={}, timeout=1, token="")
    # At once, for it has no address, and when the first reminder is due.
    at_once, line = [record.getMessage() for record in caplog.records]
    assert at_once == line
    name = "worker 1 (no-such-host.invalid:2222)"
    assert line.startswith(f"waiting for {name}: ")
    why = line.removeprefix(f"waiting for {name}: ")
    assert why in str(error.value)
    assert why.startswith("its name has no address here (")


def test_stranger_on_the_port_is_no_peer_and_does_no_harm():
    addresses = free_addresses(2)
    stop = threading.Event()

    def pester():
        port = int(addresses[0].split(":")[1])
        while not stop.is_set():
            for junk in (
                b"",
                b"GET / HTTP/1.0\r\n\r\n",
                b"0" * 32 + b"\n- {}\n",
                b"0" * 32 + b'\n- {"rank": []}\n',
                b"0" * 32 + b"\n- " + b"[" * 100_000 + b"\n",
            ):
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
