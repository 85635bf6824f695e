"""Two workers on two hosts: network namespaces, each with a network card of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import pytest
from disturbed_run import FLAGS, STEPS, assert_same_training

from mnist_dist.run.checkpoints import list_checkpoints, load_arrays

PEER_TIMEOUT = 5
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*arguments):
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise OSError(result.stderr)


class Hosts:
    """Two namespaces joined by one cable."""

    def __init__(self):
        self.names = [f"mnist-{os.getpid()}-{i}" for i in range(2)]
        for name in self.names:
            ip("netns", "add", name)
        ip(
            *("link", "add", "eth0", "netns", self.names[0], "type", "veth"),
            *("peer", "name", "eth0", "netns", self.names[1]),
        )
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        self.connect()

    def connect(self):
        for name in self.names:
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")

    def cut(self):
        ip("-n", self.names[0], "link", "set", "eth0", "down")

    def close(self):
        for name in self.names:
            with contextlib.suppress(OSError):
                ip("netns", "delete", name)

    def start(self, fork_server, folder):
        """Starts a worker on each host; each has a disk of its own."""
        return [
            fork_server.start(
                "mnist_dist.train",
                f"--model_dir={folder}/{rank}",
                f"--worker_hosts={','.join(f'{a}:2222' for a in ADDRESSES)}",
                f"--task_index={rank}",
                f"--peer_timeout={PEER_TIMEOUT}",
                *FLAGS,
                network=name,
            )
            for rank, name in enumerate(self.names)
        ]


@pytest.fixture
def hosts():
    if not shutil.which("ip"):
        pytest.skip("no ip: tools/test.sh --system-packages installs iproute2")
    try:
        pair = Hosts()
    except OSError as error:
        pytest.skip(f"network namespaces need root: {error}")
    yield pair
    pair.close()


def wait_for_checkpoint(folder, chief):
    deadline = time.monotonic() + 120
    while not list_checkpoints(str(folder / "0" / "checkpoints")):
        assert time.monotonic() < deadline, chief.stderr()
        time.sleep(0.05)


@pytest.mark.slow
def test_cut_link_ends_both_in_time_and_a_relaunch_goes_on(
    hosts, fork_server, undisturbed, tmp_path
):
    workers = hosts.start(fork_server, tmp_path)
    try:
        wait_for_checkpoint(tmp_path, workers[0])
        hosts.cut()
        began = time.monotonic()
        codes = [worker.wait() for worker in workers]
        seconds = time.monotonic() - began
    finally:
        for worker in workers:
            worker.kill(signal.SIGKILL)
    assert codes == [143, 143], [worker.stderr() for worker in workers]
    # What --peer_timeout promises, and the time to notice and leave.
    assert seconds < PEER_TIMEOUT + 10
    reached = list_checkpoints(str(tmp_path / "0" / "checkpoints"))[0]
    assert 100 <= reached < STEPS

    hosts.connect()
    workers = hosts.start(fork_server, tmp_path)
    codes = [worker.wait() for worker in workers]
    assert codes == [0, 0], [worker.stderr() for worker in workers]
    found = load_arrays(f"{tmp_path}/0/checkpoints/ckpt-{STEPS}")
    assert not (tmp_path / "1").exists()  # the chief alone writes
    assert_same_training(found, undisturbed)
