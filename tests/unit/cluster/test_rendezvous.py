import contextlib
import functools
import socket
import threading
import time

import pytest

from mnist_dist.cluster import first_host, other_host
from mnist_dist.cluster.first_host import FirstHost
from mnist_dist.cluster.other_host import OtherHost
from mnist_dist.cluster.rendezvous import (
    Agreement,
    HostsOptions,
    LaunchEnded,
)
from mnist_dist.errors import PeerError


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def create_host(
    node_rank,
    master,
    *,
    nnodes=2,
    least=None,
    timeout=10.0,
    rejoin_timeout=1.0,
    shared_token="",
    new_token="",
    fits=lambda num_workers: True,
    is_stopping=lambda: False,
    say=lambda text: None,
):
    options = HostsOptions(
        least or nnodes, nnodes, node_rank, master, timeout, rejoin_timeout
    )
    shared = {"shared_token": shared_token, "is_stopping": is_stopping, "say": say}
    if node_rank:
        return OtherHost(options, **shared)
    return FirstHost(options, new_token=new_token, fits=fits, **shared)


def agree_with_hosts(ports, *, node_rank, master, **options):
    with create_host(node_rank, master, **options) as host:
        return host.agree(ports)


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
        rank: Agreement(workers, first, count, "of 0")
        for rank, first, count in ((0, 0, 1), (1, 1, 2), (2, 3, 1))
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
    reminder = functools.partial(other_host.Reminder, first=0.1)
    for module in (other_host, first_host):
        monkeypatch.setattr(module, "Reminder", reminder)
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


class Hosts:
    """An elastic launch on this machine: a thread for each host that comes."""

    def __init__(self, first, master, **options):
        self.first = first
        self._master, self._options = master, options
        self.told = {}

    def come(self, *ranks, ports=None):
        """Lets hosts come with a worker each; returns when the first one has heard."""

        def run(rank, host):
            try:
                self.told[rank] = host.agree(ports or [1000 + rank])
            except (PeerError, LaunchEnded) as end:
                self.told[rank] = end

        for rank in ranks:
            self.told.pop(rank, None)
            host = create_host(rank, self._master, **self._options)
            threading.Thread(target=run, args=(rank, host), daemon=True).start()
        self.wait_for(
            lambda: set(ranks) <= self.first._waiting.keys() | self.told.keys()
        )

    def leave(self, rank, code):
        create_host(rank, self._master, **self._options).end(code)

    def start(self):
        """Starts with those that have come; returns the ports of all workers."""
        agreement = self.first.agree([1000])
        ports = [int(worker.rpartition(":")[2]) for worker in agreement.workers]
        others = self.first._members.keys() - {0}
        self.wait_for(lambda: others <= self.told.keys())
        assert {tuple(self.told[r].workers) for r in others} == {
            tuple(agreement.workers)
        }
        return ports

    @staticmethod
    def wait_for(condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def elastic():
    """Starts the first host of an elastic launch."""
    with contextlib.ExitStack() as closing:

        def start(**options):
            master = ("127.0.0.1", free_port())
            options = {"nnodes": 4, "least": 2, "rejoin_timeout": 0.3} | options
            first = closing.enter_context(create_host(0, master, **options))
            options.pop("fits", None)
            return Hosts(first, master, **options)

        yield start


def test_lost_host_is_waited_for_and_a_new_one_taken_in(elastic):
    hosts = elastic()
    hosts.come(1, 2)
    began = time.monotonic()
    assert hosts.start() == [1000, 1001, 1002]
    assert time.monotonic() - began > 0.3  # for one more, that can come
    hosts.come(2)
    assert not hosts.first.has_newcomer()  # it comes again
    began = time.monotonic()
    assert hosts.start() == [1000, 1002]
    assert 0.3 < time.monotonic() - began < 2
    hosts.come(2)
    began = time.monotonic()
    assert hosts.start() == [1000, 1002]  # one that was given up is not waited for
    assert time.monotonic() - began < 0.3
    hosts.come(3)
    assert hosts.first.has_newcomer()
    hosts.come(2)
    assert hosts.start() == [1000, 1002, 1003]
    assert not hosts.first.has_newcomer()


def test_host_that_leaves_is_not_waited_for(elastic):
    hosts = elastic(rejoin_timeout=60.0)
    hosts.come(1, 2, 3)
    assert hosts.start() == [1000, 1001, 1002, 1003]
    hosts.leave(1, code=143)
    hosts.come(2, 3)
    assert hosts.start() == [1000, 1002, 1003]


def test_as_many_workers_start_as_can_share_the_batch_out(elastic):
    hosts = elastic(fits=lambda n: 8 % n == 0, nnodes=5)
    hosts.come(1, 2)
    assert hosts.start() == [1000, 1001]
    hosts.come(1)
    assert not hosts.first.has_newcomer()  # host 2 waits on, and is not enough
    hosts.come(3)
    assert hosts.first.has_newcomer()
    assert hosts.start() == [1000, 1001, 1002, 1003]
    hosts.come(1, ports=[1001, 2001, 3001, 4001, 5001, 6001])
    hosts.come(2, 3)
    assert hosts.start() == [1000, 1001, 2001, 3001, 4001, 5001, 6001, 1002]


def test_too_few_hosts_are_named(elastic):
    hosts = elastic(least=3, timeout=0.5)
    hosts.come(1)
    with pytest.raises(PeerError, match=r"2 hosts have come within .* at least 3"):
        hosts.first.agree([1000])


def test_those_that_wait_learn_that_the_launch_has_ended(elastic):
    hosts = elastic()
    hosts.come(1, 2)
    hosts.start()
    hosts.come(3)  # too late
    hosts.first.end(0)
    hosts.wait_for(lambda: 3 in hosts.told)
    assert hosts.told[3].code == 0

    hosts.come(1)
    timer = threading.Timer(0.3, hosts.leave, args=(2, 1))
    timer.start()
    began = time.monotonic()
    hosts.first.end(2)  # waits for host 2, whose workers have ended too
    assert 0.2 < time.monotonic() - began < 3
    assert hosts.told[1].code == 2
