"""`doctor` on one worker, on two, and where something is missing."""

import json
import os
import socket

import pytest


@pytest.fixture
def doctor(fork_server, tmp_path):
    """Runs it with these flags; returns its exit code and its JSON."""

    def start(*flags, **kwargs):
        flags = [f"--model_dir={tmp_path}/new/run", "--format=json", *flags]
        return fork_server.start("mnist_dist.doctor", *flags, **kwargs)

    def run(*flags, **kwargs):
        process = start(*flags, **kwargs)
        code = process.wait()
        return code, json.loads(process.stdout())

    run.start = start
    return run


def free_hosts(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    hosts = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return hosts


def test_healthy_worker_has_facts_numbers_and_leaves_nothing(doctor, tmp_path):
    code, found = doctor("--logical_cpus=2", "--dtype=bfloat16")
    (worker,) = found["workers"]
    assert worker["stops"] == []
    # The machine of the tests may be slow; that is said then, and in the code.
    assert found["healthy"] is (not worker["slows"])
    assert code == (0 if found["healthy"] else 2)
    assert worker["facts"]["all-reduce"].startswith("right over 2 replicas, ")
    assert worker["facts"]["data"].startswith("bundled MNIST: 60,000 training images")
    assert "locks work" in worker["facts"]["model_dir"]
    for name in ("float32_gflop_per_second", "bfloat16_gflop_per_second"):
        assert worker["numbers"][name] > 0
    assert list(tmp_path.iterdir()) == []


def test_two_workers_reach_each_other_and_compare_their_clocks(doctor):
    hosts = free_hosts(2)
    flags = [f"--worker_hosts={','.join(hosts)}", "--peer_timeout=10"]
    group = [doctor.start(*flags, f"--task_index={rank}") for rank in range(2)]
    codes = [process.wait() for process in group]
    found = json.loads(group[0].stdout())
    assert group[1].stdout() == ""
    assert codes == [0 if found["healthy"] else 2] * 2
    assert [worker["rank"] for worker in found["workers"]] == [0, 1]
    for worker, host in zip(found["workers"], hosts, strict=True):
        assert worker["stops"] == []
        assert "all reached in" in worker["facts"]["cluster"]
        assert worker["facts"]["open port"].startswith(host.split(":")[1])
        assert worker["facts"]["all-reduce"].startswith("right over 2 replicas")
        assert worker["numbers"]["all_reduce_gb_per_second"] > 0
    seconds = float(found["workers"][1]["facts"]["clock"].split()[0])
    assert abs(seconds) < 1


def test_what_stops_a_run_is_found_all_at_once(doctor, tmp_path):
    (tmp_path / "file").touch()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-5d5b)'\n")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment["CUDA_VISIBLE_DEVICES"] = "999"  # neither hidden, nor there
    code, found = doctor(
        f"--model_dir={tmp_path}/file/run",
        f"--data_dir={tmp_path}/nothing",
        environment=environment,
    )
    assert code == 2
    stops = found["workers"][0]["stops"]
    words = ["--model_dir: found", f"'{tmp_path}/nothing'", "found GPUs on this host"]
    for word, text in zip(words, stops, strict=True):
        assert word in text


def test_missing_peer_is_found_in_time(doctor):
    flags = [f"--worker_hosts={','.join(free_hosts(2))}", "--task_index=0"]
    code, found = doctor(*flags, "--cluster_timeout=1")
    assert code == 2
    (text,) = found["workers"][0]["stops"]
    assert text.startswith("worker 1 (127.0.0.1:")
    assert "was not reached within 1 seconds" in text
