"""Several workers on loopback: the results of one, and what faults do to them."""

import json
import signal
import socket
import time

import numpy as np
import pytest

from mnist_dist.checkpoints import list_checkpoints, load_arrays

COMMON = [
    "--model=mlp",
    "--global_batch_size=96",
    "--lr_schedule=constant",
    "--dropout=0.1",
    "--eval_interval=40",
    "--checkpoint_interval=40",
    "--summary_interval=20",
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

    def start(model_dir, *flags, num_workers=2, ranks=None, own_flags=None):
        hosts = free_hosts(num_workers)
        group = []
        for rank in range(num_workers) if ranks is None else ranks:
            # No shared file system: only the chief may need the run's directory.
            directory = model_dir if rank == 0 else model_dir / f"not-for-{rank}"
            group.append(
                fork_server.start(
                    "mnist_dist.train",
                    f"--model_dir={directory}",
                    *(COMMON if num_workers == 1 else [*COMMON, "--peer_timeout=2"]),
                    *flags,
                    *((own_flags or {}).get(rank, [])),
                    *([] if num_workers == 1 else [f"--worker_hosts={hosts}"]),
                    *([] if num_workers == 1 else [f"--task_index={rank}"]),
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


def final_arrays(model_dir):
    directory = str(model_dir / "checkpoints")
    return load_arrays(f"{directory}/ckpt-{list_checkpoints(directory)[0]}")


def evaluations(model_dir):
    records = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [r for r in records if r["kind"] == "eval"]


def assert_same_weights(found_dir, expected_dir):
    found, expected = final_arrays(found_dir), final_arrays(expected_dir)
    assert found["step"] == expected["step"]
    weights = [name for name in expected if name.startswith(("model/", "ema/"))]
    assert weights
    for name in weights:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=2e-3, atol=2e-4, err_msg=name
        )


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, fork_server):
    """Undisturbed runs of 120 steps in one process, by model."""
    folder, done = tmp_path_factory.mktemp("one"), {}

    def run(model):
        if model not in done:
            done[model] = folder / model
            process = fork_server.start(
                "mnist_dist.train",
                f"--model_dir={done[model]}",
                *COMMON,
                f"--model={model}",
                "--train_steps=120",
            )
            finish([process])
        return done[model]

    return run


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_two_workers_give_the_results_of_one(model, one_process, start, tmp_path):
    group = start(tmp_path, f"--model={model}", "--train_steps=120")
    finish(group)
    assert_same_weights(tmp_path, one_process(model))
    found, expected = evaluations(tmp_path), evaluations(one_process(model))
    assert [r["step"] for r in found] == [r["step"] for r in expected] == [40, 80, 120]
    for a, b in zip(found, expected, strict=True):
        assert a["num_examples"] == 10_000
        assert abs(a["accuracy"] - b["accuracy"]) < 2e-3
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=5e-3)
    # The chief alone writes, and says what the run is.
    assert not (tmp_path / "not-for-1").exists()
    assert "worker 0 is chief, this one" in group[0].stdout()
    assert "2 workers" in group[0].stdout()
    assert group[0].stderr().count("unauthenticated") == 1
    assert "worker 1 of 2" in group[1].stdout()
    assert len(group[1].stdout().splitlines()) == 1
    assert group[1].stderr() == ""


def wait_for_step(model_dir, step, group):
    deadline = time.monotonic() + 60
    while max(list_checkpoints(str(model_dir / "checkpoints")), default=0) < step:
        assert time.monotonic() < deadline, [p.stderr() for p in group]
        time.sleep(0.005)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_to_one_worker_stops_all_at_one_step(
    rank, number, one_process, start, tmp_path
):
    group = start(tmp_path, "--train_steps=100000")
    wait_for_step(tmp_path, 40, group)
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


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_worker_ends_the_other_at_once_and_all_go_on(
    rank, one_process, start, tmp_path
):
    group = start(tmp_path, "--train_steps=120", "--steps_per_loop=1")
    wait_for_step(tmp_path, 40, group)
    group[rank].kill(signal.SIGKILL)
    began = time.monotonic()
    assert group[1 - rank].wait() == 143
    assert time.monotonic() - began < 2
    message = group[1 - rank].stderr().splitlines()[-1]
    assert f"train: error: worker {rank} is gone" in message
    finish(start(tmp_path, "--train_steps=120"))
    assert_same_weights(tmp_path, one_process("mlp"))


@pytest.mark.parametrize("rank", [0, 1])
def test_silent_worker_is_lost_after_the_peer_timeout(rank, start, tmp_path):
    group = start(tmp_path, "--train_steps=100000")
    wait_for_step(tmp_path, 40, group)
    group[rank].kill(signal.SIGSTOP)
    began = time.monotonic()
    assert group[1 - rank].wait() == 143
    assert time.monotonic() - began < 2 + 3
    assert "is gone" in group[1 - rank].stderr().splitlines()[-1]
    group[rank].kill(signal.SIGKILL)


def test_missing_worker_is_named_in_time(start, tmp_path):
    began = time.monotonic()
    (chief,) = start(tmp_path, "--cluster_timeout=2", "--train_steps=40", ranks=[0])
    assert chief.wait() == 143
    assert time.monotonic() - began < 10
    message = chief.stderr().splitlines()[-1]
    assert "train: error: worker 1 (127.0.0.1:" in message
    assert "was not reached within 2 seconds (--cluster_timeout)" in message
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_workers_started_otherwise_are_refused(start, tmp_path):
    group = start(tmp_path, "--train_steps=40", own_flags={1: ["--seed=2"]})
    finish(group, code=2)
    for rank, process in enumerate(group):
        (message,) = process.stderr().splitlines()
        assert f"worker {1 - rank} was started otherwise" in message
        assert f"seed is {1 + rank} here, {2 - rank} there" in message


def test_wrong_input_of_the_chief_ends_all_with_its_reason(start, tmp_path):
    finish(start(tmp_path, "--train_steps=40"))
    group = start(tmp_path, "--train_steps=80", "--learning_rate=1")
    assert [process.wait() for process in group] == [2, 143]
    assert "--learning_rate: found 1.0" in group[0].stderr().splitlines()[-1]


def test_dry_run_leaves_nothing(start, tmp_path):
    group = start(tmp_path / "run", "--train_steps=40", "--dry_run")
    finish(group)
    assert not (tmp_path / "run").exists()


def test_run_goes_on_with_other_numbers_of_workers(one_process, start, tmp_path):
    finish(start(tmp_path, "--train_steps=30"))
    finish(start(tmp_path, "--train_steps=60", num_workers=3))
    mirrored = ["--distribution_strategy=mirrored", "--logical_cpus=2"]
    finish(start(tmp_path, "--train_steps=80", *mirrored, num_workers=1))
    finish(start(tmp_path, "--train_steps=100", num_workers=1))
    finish(start(tmp_path, "--train_steps=120"))
    assert_same_weights(tmp_path, one_process("mlp"))
    assert not list(tmp_path.glob("not-for-*"))
