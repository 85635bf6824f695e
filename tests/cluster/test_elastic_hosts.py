"""The launchers of an elastic launch, with small programs in the place of `train`."""

import os
import signal
import socket
import time

import pytest

# What all workers of one start do together, they know from files in one folder.
WORKER = """
import os, pathlib, signal, sys, time
options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
folder = pathlib.Path(os.environ["FOLDER"])
start = folder / options["worker_hosts"].replace(":", "_")
start.mkdir(exist_ok=True)
def stop_all(*_):
    if (folder / "have not met").exists():
        sys.exit(143)
    (start / "stop").touch()
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop_all)
(start / options["task_index"]).touch()
while not (folder / "done").exists():
    if (folder / f"fail-{options['task_index']}").exists():
        (folder / f"fail-{options['task_index']}").unlink()
        if not (folder / "have not met").exists():
            (start / "stop").touch()
        sys.exit("the cause")
    if (start / "stop").exists():
        sys.exit(143)
    time.sleep(0.01)
"""
LAUNCHER = """
import sys
from mnist_dist.cluster import other_host, restarts
from mnist_dist.cluster.launcher import launch
from mnist_dist.cluster.rendezvous import HostsOptions
from mnist_dist.cli import program
restarts.FIRST_DELAY = 0.05
other_host._ALONE_SECONDS = 0.5
program.run(lambda argv: launch(
    [sys.executable, {worker!r}], num_workers=1, max_restarts={max_restarts},
    model_dir={model_dir!r}, uses_gpus=False, hosts=HostsOptions(**{hosts})))
"""


class Launch:
    """Launchers on this machine, in the place of those of several hosts."""

    def __init__(self, fork_server, folder):
        self._fork_server, self._folder = fork_server, folder
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._master = ("127.0.0.1", server.getsockname()[1])
        (folder / "worker.py").write_text(WORKER)
        (folder / "starts").mkdir()
        self.launchers = []

    def come(self, node_rank, *, max_restarts=0, **options):
        """Starts the launcher of a host."""
        hosts = {"least": 2, "most": 3, "node_rank": node_rank, "master": self._master}
        code = LAUNCHER.format(
            worker=str(self._folder / "worker.py"),
            model_dir=str(self._folder / f"run-{node_rank}"),
            max_restarts=max_restarts,
            hosts=hosts | {"timeout": 60.0, "rejoin_timeout": 60.0} | options,
        )
        launcher = self._fork_server.start(
            *("-c", code), environment={"FOLDER": str(self._folder / "starts")}
        )
        self.launchers.append(launcher)
        return launcher

    def wait_for_start(self, number, num_workers):
        """Returns when the workers of a start are up, counted from 1."""

        def is_up():
            starts = sorted(self.starts(), key=os.path.getmtime)
            return len(starts) == number and (
                len(list(starts[-1].glob("[0-9]"))) == num_workers
            )

        self.wait_for(is_up)

    def starts(self):
        """Returns the folders of the starts so far."""
        return list((self._folder / "starts").glob("*_*"))

    def tell(self, name):
        """Tells the workers something, by a file."""
        (self._folder / "starts" / name).touch()

    def wait_for(self, condition):
        """Returns when it is so."""
        deadline = time.monotonic() + 60
        while not condition():
            errors = [launcher.stderr() for launcher in self.launchers]
            assert time.monotonic() < deadline, errors
            time.sleep(0.01)

    def wait_for_line(self, launcher, text, count=1):
        """Returns when a launcher has said this."""
        self.wait_for(lambda: launcher.stderr().count(text) >= count)


@pytest.fixture
def launch(fork_server, tmp_path):
    launch = Launch(fork_server, tmp_path)
    yield launch
    for launcher in launch.launchers:
        launcher.kill(signal.SIGKILL)


def test_host_that_is_stopped_leaves_at_once_and_may_come_again(launch):
    first, second, third = (launch.come(rank) for rank in range(3))
    launch.wait_for_start(1, 3)
    second.kill(signal.SIGTERM)
    launch.wait_for_start(2, 2)  # not after --rejoin_timeout, a minute
    assert second.wait() == 143
    second = launch.come(1)
    launch.wait_for_start(3, 3)
    launch.tell("done")
    assert [p.wait() for p in (first, second, third)] == [0, 0, 0]
    assert "another host has come: starting again with it" in first.stderr()
    assert "restart" not in first.stderr()


def test_host_whose_workers_fail_too_often_ends_and_the_others_go_on(launch):
    first, second, third = (launch.come(rank, max_restarts=1) for rank in range(3))
    launch.wait_for_start(1, 3)
    launch.tell("fail-1")
    launch.wait_for_start(2, 3)
    launch.tell("fail-1")
    launch.wait_for_start(3, 2)
    launch.tell("done")
    assert [p.wait() for p in (first, second, third)] == [0, 1, 0]
    assert "worker 1 ended with code 1; restart 1 of 1" in second.stderr()
    assert second.stderr().splitlines()[-1] == "the cause"


def test_fixed_number_of_hosts_ends_when_the_restarts_are_used_up(launch):
    two = {"least": 2, "most": 2, "max_restarts": 1}
    first, second = (launch.come(rank, **two) for rank in range(2))
    for number in (1, 2):
        launch.wait_for_start(number, 2)
        launch.tell("fail-1")
    assert [first.wait(), second.wait()] == [143, 1]
    assert first.stderr().count("; restart 1 of 1") == 1
    assert second.stderr().splitlines()[-1] == "the cause"


@pytest.mark.parametrize("least", [2, 3])
def test_workers_that_wait_for_one_that_has_failed_are_stopped(least, launch):
    options = {"least": least, "max_restarts": 1}
    launchers = [launch.come(rank, **options) for rank in range(3)]
    launch.wait_for_start(1, 3)
    launch.tell("have not met")
    launch.tell("fail-1")
    launch.wait_for_start(2, 3)  # not after --cluster_timeout or --rejoin_timeout
    launch.tell("done")
    assert [launcher.wait() for launcher in launchers] == [0, 0, 0]


def test_starts_that_make_no_checkpoint_end_at_last(launch):
    first, second = (launch.come(rank, most=2, least=1) for rank in range(2))
    for number in range(1, 5):
        launch.wait_for_start(number, 2)
        # As by one that hangs: all end with 143, and no host is the cause.
        for start in launch.starts():
            (start / "stop").touch()
    assert [first.wait(), second.wait()] == [143, 143]
    assert "the first host's launcher has ended with code 143" in second.stderr()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_end_of_the_first_host_is_the_end_unless_it_comes_again(number, launch):
    two = {"least": 1, "most": 2, "timeout": 6.0}
    first, second = (launch.come(rank, **two) for rank in range(2))
    launch.wait_for_start(1, 2)
    first.kill(number)
    if number == signal.SIGKILL:
        launch.wait_for_line(second, "another worker is gone")
        first = launch.come(0, **two)
        launch.wait_for_start(2, 2)
        first.kill(number)
    assert second.wait() == 143
    said = {
        signal.SIGTERM: "the first host's launcher has ended with code 143",
        signal.SIGKILL: "was not reached within --cluster_timeout",
    }
    assert said[number] in second.stderr().splitlines()[-1]
