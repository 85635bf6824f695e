"""Two workers on two hosts, of which one is cut off."""

import signal
import time

import pytest
from disturbed_run import FLAGS, STEPS, assert_same_training
from separate_hosts import separate_hosts

from mnist_dist.run.checkpoints import list_checkpoints, load_arrays

PEER_TIMEOUT = 5


def start(hosts, fork_server, folder):
    """Starts a worker on each host; each has a disk of its own."""
    workers = ",".join(f"{address}:2222" for address in hosts.addresses)
    return [
        fork_server.start(
            "mnist_dist.train",
            f"--model_dir={folder}/{rank}",
            f"--worker_hosts={workers}",
            f"--task_index={rank}",
            f"--peer_timeout={PEER_TIMEOUT}",
            *FLAGS,
            network=name,
        )
        for rank, name in enumerate(hosts.names)
    ]


@pytest.fixture
def hosts():
    with separate_hosts(2) as pair:
        yield pair


def wait_for_checkpoint(folder, chief):
    deadline = time.monotonic() + 120
    while not list_checkpoints(str(folder / "0" / "checkpoints")):
        assert time.monotonic() < deadline, chief.stderr()
        time.sleep(0.05)


@pytest.mark.slow
def test_cut_link_ends_both_in_time_and_a_relaunch_goes_on(
    hosts, fork_server, undisturbed, tmp_path
):
    workers = start(hosts, fork_server, tmp_path)
    try:
        wait_for_checkpoint(tmp_path, workers[0])
        hosts.cut(0)
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

    hosts.connect(0)
    workers = start(hosts, fork_server, tmp_path)
    codes = [worker.wait() for worker in workers]
    assert codes == [0, 0], [worker.stderr() for worker in workers]
    found = load_arrays(f"{tmp_path}/0/checkpoints/ckpt-{STEPS}")
    assert not (tmp_path / "1").exists()  # the chief alone writes
    assert_same_training(found, undisturbed)
