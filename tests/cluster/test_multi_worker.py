"""Several workers on loopback: the results of one process, and what faults do to them."""

import ast
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from disturbed_run import assert_same_training
from launched_workers import workers_of
from small_mnist import small_mnist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_dist.evaluation.watch_records import load_record
from mnist_dist.run.checkpoints import list_checkpoints, load_arrays

PEER_TIMEOUT = 4  # less, and a busy machine loses workers that live
COMMON = [
    f"--data_dir={small_mnist()}",
    "--model=mlp",
    "--global_batch_size=96",
    "--lr_schedule=constant",
    "--dropout=0.1",
    "--noaugment",  # to trace it takes a sixth of a start
    "--enable_xla=off",  # to compile takes longer than to train
    "--eval_interval=20",
    "--checkpoint_interval=20",
    "--summary_interval=10",
    "--noexport",
]


def free_hosts(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return ",".join(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    finally:
        for s in sockets:
            s.close()


@pytest.fixture
def start(fork_server):
    """Starts workers, each with a model_dir of its own; ends them after the test."""
    processes = []

    def start(
        model_dir,
        *flags,
        num_workers=2,
        ranks=None,
        own_flags=None,
        hosts=None,
        environment=None,
    ):
        hosts = hosts or free_hosts(num_workers)
        group = []
        for rank in range(num_workers) if ranks is None else ranks:
            # No shared file system: only the chief may need the run's directory.
            directory = model_dir if rank == 0 else model_dir / f"not-for-{rank}"
            group.append(
                fork_server.start(
                    "mnist_dist.train",
                    f"--model_dir={directory}",
                    *(
                        COMMON
                        if num_workers == 1
                        else [*COMMON, f"--peer_timeout={PEER_TIMEOUT}"]
                    ),
                    *flags,
                    *((own_flags or {}).get(rank, [])),
                    *([] if num_workers == 1 else [f"--worker_hosts={hosts}"]),
                    *([] if num_workers == 1 else [f"--task_index={rank}"]),
                    environment=environment,
                )
            )
        processes.extend(group)
        return group

    yield start
    for process in processes:
        process.kill(signal.SIGKILL)


def finish(group, code=0):
    codes = [process.wait() for process in group]
    assert codes == [code] * len(group), [p.stderr() for p in group]


def arrays(model_dir, step=None):
    """Arrays of a run's checkpoint, the newest unless told otherwise."""
    directory = str(model_dir / "checkpoints")
    return load_arrays(f"{directory}/ckpt-{step or list_checkpoints(directory)[0]}")


def evaluations(model_dir):
    records = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [r | {"time": None} for r in records if r["kind"] == "eval"]


TWO_REPLICAS = ["--distribution_strategy=mirrored", "--logical_cpus=2"]


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory, fork_server):
    """An undisturbed run of 60 steps, of two replicas in one process.

    Two workers compute the same to the last bit: each replica's shapes and threads are
    the same, and of two gradients the sum is the same in either order.
    """
    folder = tmp_path_factory.mktemp("two") / "run"
    flags = [f"--model_dir={folder}", *COMMON, *TWO_REPLICAS, "--train_steps=60"]
    finish([fork_server.start("mnist_dist.train", *flags)])
    return folder


def assert_same_bits(found_dir, expected_dir, *, step=None):
    assert_same_training(arrays(found_dir, step), arrays(expected_dir, step))


@pytest.mark.parametrize(
    "flags",
    [
        ["--model=mlp", "--enable_xla=on", "--summary_detail=full"],
        ["--model=cnn", "--augment"],
    ],
)
def test_two_workers_give_the_results_of_two_replicas(flags, start, tmp_path):
    flags = [*flags, "--train_steps=10"]
    workers, replicas = tmp_path / "workers", tmp_path / "replicas"
    group = start(workers, *flags)
    finish(group)
    finish(start(replicas, *flags, *TWO_REPLICAS, num_workers=1))
    assert_same_bits(workers, replicas)
    (evaluation,) = evaluations(workers)
    assert [evaluation] == evaluations(replicas)
    assert (evaluation["step"], evaluation["num_examples"]) == (10, 1_000)
    if "--summary_detail=full" in flags:  # of which each has answered a part
        train = EventAccumulator(str(workers / "train")).Reload()
        fastest, slowest = (
            train.Tensors(f"perf/{name}_worker_ms")[-1].tensor_proto.float_val[0]
            for name in ("fastest", "slowest")
        )
        assert 0 < fastest <= slowest
        names = [f"perf/{name}_worker" for name in ("fastest", "slowest")]
        ranks = {train.Tensors(name)[-1].tensor_proto.float_val[0] for name in names}
        assert ranks == {0, 1}
        (errors,) = EventAccumulator(str(workers / "eval")).Reload().Tensors("errors")
        found = errors.tensor_proto.float_val[0]
        assert found == round(1_000 * (1 - evaluation["accuracy"]))
    # The chief alone writes, and says what the run is.
    assert not (workers / "not-for-1").exists()
    assert "worker 0 is chief, this one" in group[0].stdout()
    assert "2 workers" in group[0].stdout()
    assert group[0].stderr().count("unauthenticated") == 1
    assert "worker 1 of 2" in group[1].stdout()
    assert len(group[1].stdout().splitlines()) == 1
    assert group[1].stderr() == ""


def test_two_workers_with_microbatches_give_the_results_of_one_device(start, tmp_path):
    flags = ["--num_microbatches=6", "--train_steps=20"]
    workers, one = tmp_path / "workers", tmp_path / "one"
    group = start(workers, *flags)
    finish(start(one, *flags, num_workers=1))
    finish(group)
    assert_same_bits(workers, one)
    assert evaluations(workers) == evaluations(one)


def wait_for_step(model_dir, step, group):
    deadline = time.monotonic() + 240
    while max(list_checkpoints(str(model_dir / "checkpoints")), default=0) < step:
        assert time.monotonic() < deadline, [p.stderr() for p in group]
        time.sleep(0.005)


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_signal_to_one_worker_stops_all_at_one_step(rank, number, start, tmp_path):
    group = start(tmp_path, "--train_steps=100000")
    wait_for_step(tmp_path, 20, group)
    group[rank].kill(number)
    finish(group, code=143)
    lines = [process.stdout().splitlines()[-1] for process in group]
    name = signal.Signals(number).name
    assert f"stopped by {name} at step" in lines[rank]
    assert "stopped by a signal to another worker at step" in lines[1 - rank]
    stopped_at = {line.split(" at step ")[1].split()[0] for line in lines}
    assert len(stopped_at) == 1
    newest = list_checkpoints(str(tmp_path / "checkpoints"))[0]
    assert stopped_at == {f"{newest:,}"}


# Sends SIGTERM when TensorFlow has connected the workers, and with that put a handler
# of its own in the place of ours.
SIGNALLED_WHILE_CONNECTING = """
import contextlib, os, runpy, signal, sys
from mnist_dist.device import strategy
limit = strategy.exits_unless_done_within
@contextlib.contextmanager
def limit_and_signal(seconds, *, code):
    with limit(seconds, code=code):
        yield
    os.kill(os.getpid(), signal.SIGTERM)
strategy.exits_unless_done_within = limit_and_signal
runpy.run_module("mnist_dist.train", run_name="__main__", alter_sys=True)
"""


def test_signal_while_tensorflow_connects_is_not_lost(
    start, fork_server, two_replicas, tmp_path
):
    hosts = free_hosts(2)
    (chief,) = start(tmp_path, "--train_steps=60", ranks=[0], hosts=hosts)
    other = fork_server.start(
        *("-c", SIGNALLED_WHILE_CONNECTING, *COMMON),
        *(f"--model_dir={tmp_path}/not-for-1", "--train_steps=60"),
        *(f"--peer_timeout={PEER_TIMEOUT}", f"--worker_hosts={hosts}"),
        "--task_index=1",
    )
    assert (other.wait(), chief.wait()) == (143, 143), other.stderr()
    assert "stopped by SIGTERM at step 1 and saved" in other.stdout()
    assert list_checkpoints(str(tmp_path / "checkpoints")) == [1]
    finish(start(tmp_path, "--train_steps=60"))
    assert_same_bits(tmp_path, two_replicas)


def assert_is_lost_to_the_other_in_time(group, rank, *, began):
    """Waits for the other worker to end, and returns its last line."""
    assert group[1 - rank].wait() == 143
    # A broken connection is seen at once, unless the survivor was waiting to be asked:
    # then as silence, which TensorFlow looks for once a second.
    noticed = PEER_TIMEOUT + 1
    assert time.monotonic() - began < noticed + 2
    return group[1 - rank].stderr().splitlines()[-1]


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_worker_ends_the_other_in_time_and_all_go_on(
    rank, two_replicas, start, tmp_path
):
    group = start(tmp_path, "--train_steps=60", "--steps_per_loop=1")
    wait_for_step(tmp_path, 20, group)
    group[rank].kill(signal.SIGKILL)
    message = assert_is_lost_to_the_other_in_time(group, rank, began=time.monotonic())
    assert f"train: error: worker {rank} is gone" in message
    finish(start(tmp_path, "--train_steps=60"))
    assert_same_bits(tmp_path, two_replicas)


def test_silent_worker_is_lost_after_the_peer_timeout(start, tmp_path):
    runs = [tmp_path / f"worker-{rank}-is-silent" for rank in range(2)]
    groups = [start(run, "--train_steps=100000") for run in runs]
    for run, group in zip(runs, groups, strict=True):
        wait_for_step(run, 20, group)
    began = time.monotonic()
    for rank, group in enumerate(groups):
        group[rank].kill(signal.SIGSTOP)
    for rank, group in enumerate(groups):
        message = assert_is_lost_to_the_other_in_time(group, rank, began=began)
        assert "is gone" in message


# A worker that lives, but comes to no further step: in its own code, or in a file system
# that does not answer the thread that writes a checkpoint, for which the next one waits.
HANGING = """
import os, runpy, time
def hang(*args):
    time.sleep(1000)
{hang}
runpy.run_module("mnist_dist.train", run_name="__main__", alter_sys=True)
"""
IN_PYTHON = HANGING.format(
    hang="""
from mnist_dist.training.batches import Batches
feed = Batches.feed
Batches.feed = lambda s, step, n: hang() if step == 30 else feed(s, step, n)
"""
)
IN_FILE_SYSTEM = HANGING.format(
    hang="""
import threading
fsync, main = os.fsync, threading.main_thread()
os.fsync = lambda fd: fsync(fd) if threading.current_thread() is main else hang()
"""
)


@pytest.mark.parametrize(
    ("rank", "code", "step"),
    [(1, IN_PYTHON, 30), (0, IN_FILE_SYSTEM, 40)],
)
def test_worker_that_hangs_is_named_with_its_stacks_and_ends_all(
    rank, code, step, start, fork_server, two_replicas, tmp_path
):
    hosts, limit = free_hosts(2), "--step_timeout=6"
    (other,) = start(tmp_path, "--train_steps=60", limit, ranks=[1 - rank], hosts=hosts)
    hanging = fork_server.start(
        *("-c", code, *COMMON, limit, "--train_steps=60"),
        f"--model_dir={tmp_path / ('not-for-1' if rank else '')}",
        *(f"--peer_timeout={PEER_TIMEOUT}", f"--worker_hosts={hosts}"),
        f"--task_index={rank}",
    )
    assert (other.wait(), hanging.wait()) == (143, 143), hanging.stderr()
    chief = other if rank else hanging
    assert f"worker {rank} did not come to the call at step {step}" in chief.stderr()
    assert f"(--step_timeout) in the call at step {step}" in other.stderr()
    assert "in train_until_next_event" in other.stderr()
    assert "(--step_timeout) between two calls" in hanging.stderr()
    assert "in hang" in hanging.stderr()
    finish(start(tmp_path, "--train_steps=60"))
    assert_same_bits(tmp_path, two_replicas)


def test_missing_worker_is_named_in_time(start, tmp_path):
    began = time.monotonic()
    (chief,) = start(tmp_path, "--cluster_timeout=2", "--train_steps=40", ranks=[0])
    assert chief.wait() == 143
    assert time.monotonic() - began < 10
    message = chief.stderr().splitlines()[-1]
    assert "train: error: worker 1 (127.0.0.1:" in message
    assert "was not reached within 2 seconds (--cluster_timeout)" in message
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_host_without_an_address_is_told_at_once(start, tmp_path):
    flags = ("--cluster_timeout=120", "--train_steps=40")
    hosts = f"{free_hosts(1)},no-such-host.invalid:4000"
    (chief,) = start(tmp_path, *flags, ranks=[0], hosts=hosts)
    deadline = time.monotonic() + 60
    while "worker 0 is chief" not in chief.stdout():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    began = time.monotonic()
    while "waiting for worker 1 (no-such-host.invalid:4000): " not in chief.stderr():
        assert time.monotonic() < began + 8  # other hosts are told of after 10 seconds
        time.sleep(0.01)
    assert "its name has no address here" in chief.stderr()
    chief.kill(signal.SIGTERM)
    assert chief.wait() == 143


def test_signal_ends_the_wait_for_a_missing_worker(start, tmp_path):
    (chief,) = start(tmp_path, "--train_steps=40", ranks=[0])
    deadline = time.monotonic() + 120
    while "worker 0 is chief" not in chief.stdout():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    began = time.monotonic()
    chief.kill(signal.SIGTERM)
    assert chief.wait() == 143
    assert time.monotonic() - began < 5
    assert "stopped while waiting for worker 1 (127.0.0.1:" in chief.stderr()


def test_workers_started_otherwise_are_refused(start, tmp_path):
    group = start(tmp_path, "--train_steps=40", own_flags={1: ["--seed=2"]})
    finish(group, code=2)
    for rank, process in enumerate(group):
        (message,) = process.stderr().splitlines()
        assert f"worker {1 - rank} was started otherwise" in message
        assert f"seed is {1 + rank} here, {2 - rank} there" in message


def test_wrong_input_of_the_chief_ends_all_with_its_reason(start, tmp_path):
    finish(start(tmp_path, "--train_steps=20"))
    group = start(tmp_path, "--train_steps=40", "--learning_rate=1")
    assert [process.wait() for process in group] == [2, 143]
    reason = group[0].stderr().splitlines()[-1].removeprefix("train: error: ")
    assert "--learning_rate: found 1.0" in reason
    told = group[1].stderr().splitlines()[-1]
    assert told == f"train: error: worker 0 has ended: {reason}"


def test_evaluator_goes_on_as_evaluate_watch(tmp_path):
    code = (
        "import os, runpy, sys\n"
        "os.execv = lambda path, command: sys.exit(repr((path, command)))\n"
        f"sys.argv = ['train', '--model_dir={tmp_path}/run', '--data_dir=D']\n"
        "runpy.run_module('mnist_dist.train', run_name='__main__')\n"
    )
    config = {"cluster": {"worker": ["a:1", "b:1"]}}
    config["task"] = {"type": "evaluator", "index": 0}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TF_CONFIG": json.dumps(config)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "TF_CONFIG: evaluator of a:1, b:1\n"
    path, command = ast.literal_eval(result.stderr)
    assert path == command[0] == sys.executable
    assert command[1:4] == ["-m", "mnist_dist.evaluate", "--watch"]
    assert {f"--model_dir={tmp_path}/run", "--data_dir=D"} <= set(command[4:])
    assert not (tmp_path / "run").exists()


def test_tf_config_alone_makes_two_workers_and_an_evaluator(fork_server, tmp_path):
    cluster = {"worker": free_hosts(2).split(",")}
    tasks = [("worker", 0), ("worker", 1), ("evaluator", 0)]
    group = [
        fork_server.start(
            "mnist_dist.train",
            f"--model_dir={tmp_path}",
            *COMMON,
            "--train_steps=20",
            environment={
                "TF_CONFIG": json.dumps(
                    {"cluster": cluster, "task": {"type": name, "index": index}}
                )
            },
        )
        for name, index in tasks
    ]
    finish(group)
    assert "TF_CONFIG: worker 1 of 2" in group[1].stdout()
    assert "TF_CONFIG: evaluator of" in group[2].stdout()
    trained = evaluations(tmp_path)[-1]
    evaluated = load_record(str(tmp_path / "eval_watch"), 20)
    assert trained["step"] == 20
    assert evaluated["num_examples"] == trained["num_examples"] == 1_000
    assert evaluated["accuracy"] == pytest.approx(trained["accuracy"], abs=1e-3)


def test_dry_run_behind_a_proxy_meets_and_leaves_nothing(start, tmp_path):
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "example.org"}
    flags = ["--train_steps=40", "--dry_run", "--cluster_timeout=20"]
    group = start(tmp_path / "run", *flags, environment=proxy)
    finish(group)
    assert not (tmp_path / "run").exists()


def test_run_goes_on_with_other_numbers_of_workers_to_the_same_bits(start, tmp_path):
    flags, run, one = ["--num_microbatches=6"], tmp_path / "run", tmp_path / "one"
    whole = start(one, *flags, "--train_steps=20", num_workers=1)
    finish(start(run, *flags, "--train_steps=5", num_workers=2))
    finish(start(run, *flags, "--train_steps=10", *TWO_REPLICAS, num_workers=1))
    finish(start(run, *flags, "--train_steps=20", num_workers=3))
    finish(whole)
    assert_same_bits(run, one)
    assert evaluations(run)[-1] == evaluations(one)[-1]


@pytest.mark.slow
def test_killed_6_times_under_launch_a_run_ends_as_if_undisturbed(
    fork_server, tmp_path
):
    flags = ["--train_steps=500", "--steps_per_loop=20", "--eval_interval=250"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # A launcher gives its workers a part of the processors each: so here too.
    undisturbed, launcher = (
        fork_server.start(
            "forking_launcher",
            json.dumps({"max_restarts": restarts}),
            f"--model_dir={model_dir}",
            *(*COMMON, *flags, "--peer_timeout=5"),
        )
        for model_dir, restarts in ((whole, 0), (killed, 6))
    )
    rng, directory = random.Random(1), str(killed / "checkpoints")

    def newest():
        return max(list_checkpoints(directory), default=0)

    try:
        seen: set[int] = set()
        for number in range(6):
            deadline = time.monotonic() + 240
            while len(workers := workers_of(launcher) - seen) < 2:
                assert time.monotonic() < deadline, launcher.stderr()
                time.sleep(0.01)
            # Of four kills one anywhere, early too, and three while it trains or saves;
            # on a fast machine sooner, so that all come before the run is done.
            if number % 4:
                reached = newest()
                while newest() <= reached:
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
            latest = time.monotonic() + rng.uniform(0, 0.3 if number % 4 else 3)
            while time.monotonic() < latest and newest() < 60 * (number + 1):
                time.sleep(0.002)
            os.kill(rng.choice(sorted(workers)), signal.SIGKILL)
            seen |= workers
        finish([launcher, undisturbed])
    finally:
        for process in (launcher, undisturbed):
            process.kill(signal.SIGKILL)
    assert launcher.stderr().count("ended with code 137; restart") == 6
    assert_same_bits(killed, whole)
    assert [r["step"] for r in evaluations(killed)] == [250, 500]
