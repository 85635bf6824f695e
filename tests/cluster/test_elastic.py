"""A launch whose workers or hosts come and go, and that ends with the same bits."""

import json
import os
import signal
import time

import pytest
from disturbed_run import assert_same_training
from launched_workers import workers_of
from separate_hosts import separate_hosts
from small_mnist import small_mnist

from mnist_dist.run.checkpoints import list_checkpoints, load_arrays

STEPS = 300
FLAGS = [
    f"--data_dir={small_mnist()}",
    "--model=mlp",
    f"--train_steps={STEPS}",
    "--steps_per_loop=5",
    "--global_batch_size=48",
    "--num_microbatches=6",
    "--checkpoint_interval=10",
    "--summary_interval=100",
    "--eval_interval=150",
    "--enable_xla=off",
    "--noexport",
]
# As every worker has: the bits of a kernel depend on the number of threads.
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}


def start_launch(fork_server, model_dir, *flags, **options):
    network = options.pop("network", None)
    return fork_server.start(
        "forking_launcher",
        json.dumps(options),
        f"--model_dir={model_dir}",
        *(*FLAGS, "--peer_timeout=5", *flags),
        environment=ONE_THREAD,
        network=network,
    )


@pytest.fixture(scope="module")
def one_device(fork_server, tmp_path_factory):
    """The directory of an undisturbed run on one device."""
    folder = tmp_path_factory.mktemp("one") / "run"
    process = fork_server.start(
        *("mnist_dist.train", f"--model_dir={folder}", *FLAGS), environment=ONE_THREAD
    )
    assert process.wait() == 0, process.stderr()
    return folder


def assert_same_run(found, expected):
    """Weights, slots, averages and evaluations are the same to the last bit."""
    first, second = (
        load_arrays(f"{run}/checkpoints/ckpt-{STEPS}") for run in (found, expected)
    )
    assert_same_training(first, second)
    assert evaluations(found) == evaluations(expected)


def evaluations(model_dir):
    records = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [r | {"time": None} for r in records if r["kind"] == "eval"]


def wait_for_step(model_dir, step, process):
    deadline = time.monotonic() + 120
    while max(list_checkpoints(str(model_dir / "checkpoints")), default=0) < step:
        assert time.monotonic() < deadline, process.stderr()
        time.sleep(0.005)


def wait_for_line(text, process):
    deadline = time.monotonic() + 120
    while text not in process.stderr():
        assert time.monotonic() < deadline, process.stderr()
        time.sleep(0.01)


def test_two_workers_then_one_give_the_bits_of_one_device(
    fork_server, one_device, tmp_path
):
    launcher = start_launch(fork_server, tmp_path, num_workers=2, min_workers=1)
    try:
        wait_for_step(tmp_path, 40, launcher)
        _, second = sorted(workers_of(launcher))
        os.kill(second, signal.SIGKILL)
        assert launcher.wait() == 0, launcher.stderr()
    finally:
        launcher.kill(signal.SIGKILL)
    assert "is given up; going on with 1" in launcher.stderr()
    assert_same_run(tmp_path, one_device)


@pytest.fixture
def hosts():
    with separate_hosts(4) as four:
        yield four


@pytest.mark.slow
def test_host_is_lost_and_another_joins_to_the_bits_of_one_device(
    hosts, fork_server, one_device, tmp_path
):
    def start(host, *, node_rank):
        options = {"least": 2, "most": 3, "node_rank": node_rank, "timeout": 90.0}
        options |= {"master": (hosts.addresses[0], 29400), "rejoin_timeout": 3.0}
        # Each host has a disk of its own.
        return start_launch(
            *(fork_server, tmp_path / str(host)),
            **{"num_workers": 1, "hosts": options, "network": hosts.names[host]},
        )

    hosts.cut(3)  # it is there, and comes when its cable is plugged in
    launchers = [start(host, node_rank=min(host, 2)) for host in range(4)]
    first, run = launchers[0], tmp_path / "0"
    try:
        wait_for_line("3 workers on host 0, 1, 2", first)
        wait_for_step(run, 40, first)
        hosts.cut(2)  # for good
        wait_for_line("host 2 has not come; going on without", first)
        wait_for_line("2 workers on host 0, 1", first)
        reached = max(list_checkpoints(str(run / "checkpoints")))
        wait_for_step(run, reached + 10, first)
        hosts.connect(3)
        wait_for_line("another host has come: starting again with it", first)
        ended = [launchers[host] for host in (0, 1, 3)]
        codes = [launcher.wait() for launcher in ended]
        assert codes == [0, 0, 0], [launcher.stderr() for launcher in ended]
    finally:
        for launcher in launchers:
            launcher.kill(signal.SIGKILL)
    assert first.stderr().count("3 workers on host 0, 1, 2") == 2
    assert not any((tmp_path / host / "checkpoints").exists() for host in "123")
    assert_same_run(run, one_device)
