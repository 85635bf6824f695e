"""What `doctor` finds on hosts and among workers that are not well, with stand-ins."""

import json
from pathlib import Path

import pytest

from mnist_dist.cluster.membership import Cluster
from mnist_dist.diagnosis import host, storage, workers
from mnist_dist.diagnosis.diagnosis import (
    Diagnosis,
    format_json,
    format_table,
    is_healthy,
)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    (tmp_path / "proc" / "cpuinfo").write_text(
        "model name\t: A processor\nflags\t\t: fpu avx avx2 fma\n"
    )
    (tmp_path / "proc" / "meminfo").write_text(
        "MemTotal:       67108864 kB\nMemAvailable:   33554432 kB\n"
    )
    return tmp_path


def examine(root, monkeypatch, *, load=0.0, **kwargs):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(64))
    found = Diagnosis()
    kwargs = {"has_gpus": True, "environ": {}} | kwargs
    host.check_host(found, root=str(root), **kwargs)
    return found


def test_host_that_is_well(root, monkeypatch):
    found = examine(root, monkeypatch)
    assert is_healthy([found])
    assert found.facts["memory"] == "32.0 GiB free of 64.0"
    assert found.facts["processor"].startswith("A processor, 64 of ")
    assert "avx avx2 fma" in found.facts["processor"]


def test_container_with_fewer_processors_than_threads(root, monkeypatch):
    (root / "sys" / "fs" / "cgroup" / "cpu.max").write_text("200000 100000\n")
    found = examine(root, monkeypatch)
    assert "may use 2 processors, and TensorFlow starts 64 threads" in found.slows[0]
    assert found.slows[0].endswith("TF_NUM_INTRAOP_THREADS=2")
    assert is_healthy(
        [examine(root, monkeypatch, environ={"TF_NUM_INTRAOP_THREADS": "2"})]
    )


def test_container_with_little_memory(root, monkeypatch):
    cgroup = root / "sys" / "fs" / "cgroup"
    (cgroup / "memory.max").write_text(f"{2 << 30}\n")
    (cgroup / "memory.current").write_text(f"{3 << 29}\n")
    assert examine(root, monkeypatch).stops == ["memory: 0.5 GiB are free, expected 1"]


def test_busy_host(root, monkeypatch):
    (text,) = examine(root, monkeypatch, load=200.0).slows
    assert text.startswith("the load is 200.0 on 64 processors")


@pytest.mark.parametrize("is_on", [True, False])
def test_kernels_of_onednn(root, monkeypatch, is_on):
    monkeypatch.setattr(host._pywrap_util_port, "IsMklEnabled", lambda: is_on)
    found = examine(root, monkeypatch, has_gpus=False)
    assert f"oneDNN's kernels {'on' if is_on else 'off'}" in found.facts["processor"]
    assert bool(found.slows) is not is_on
    assert not examine(root, monkeypatch, has_gpus=True).slows


def test_environment_is_shown_without_secrets(root, monkeypatch):
    environ = {
        "http_proxy": "http://me:secret@proxy:3128",
        "MNIST_DIST_TOKEN": "secret",
        "TF_TOKEN_app_terraform_io": "secret",
        "TF_NUM_INTRAOP_THREADS": "4",
        "TF_CPP_MIN_LOG_LEVEL": "3",  # as every program sets it
        "KERAS_BACKEND": "tensorflow",
    }
    text = examine(root, monkeypatch, environ=environ).facts["environment"]
    assert text == "TF_NUM_INTRAOP_THREADS=4, http_proxy=http://...@proxy:3128"


def test_all_reduce_that_is_wrong(create_strategy, monkeypatch):
    found = Diagnosis()
    right = workers.all_reduce_sum
    workers.check_all_reduce(found, create_strategy(2), Cluster("test"))
    assert not found.stops
    monkeypatch.setattr(
        workers, "all_reduce_sum", lambda *args: [right(*args)[0] * 1.0000001 + 1]
    )
    workers.check_all_reduce(found, create_strategy(2), Cluster("test"))
    assert "the all-reduce over 2 replicas is wrong in 1048576 of" in found.stops[0]
    assert "at 0 found 2.0, expected 1" in found.stops[0]


def test_file_system_without_locks_and_with_a_slow_disk(tmp_path, monkeypatch):
    found = Diagnosis()

    def time_fsync(path):
        Path(path).touch()
        return 2.0

    def flock(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(storage, "_time_fsync", time_fsync)
    monkeypatch.setattr(storage.fcntl, "flock", flock)
    storage.check_storage(found, str(tmp_path / "run"))
    assert "locks are not there (Operation not supported)" in found.facts["model_dir"]
    assert "takes 2.0 s" in found.slows[0]
    assert list(tmp_path.iterdir()) == []


def test_workers_that_differ():
    both = [
        Diagnosis(
            rank=rank,
            facts={"versions": version, "data": "MNIST"},
            numbers={"clock_seconds": clock, "float32_gflop_per_second": speed},
        )
        for rank, version, clock, speed in (
            (0, "2.21", 100.0, 400),
            (1, "2.20", 98.5, 100),
        )
    ]
    workers._compare(both)
    assert both[0].stops == both[0].slows == []
    assert both[1].stops == ["versions: found 2.20, worker 0 has 2.21"]
    assert "100, where another worker has 400" in both[1].slows[0]
    assert (
        both[1].facts["clock"].startswith("+1.500 s behind worker 0's: times in logs")
    )


def test_table_and_json():
    first = Diagnosis(facts={"memory": "4 GiB", "data": "MNIST"}, slows=["slow disk"])
    second = Diagnosis(
        rank=1,
        facts={"memory": "2 GiB", "data": "MNIST"},
        stops=["no GPU"],
        slows=["slow disk"],
    )
    assert format_table([first, second]).splitlines() == [
        "memory  4 GiB",
        "data    MNIST",
        "",
        "worker 1, where it differs",
        "memory  2 GiB",
        "",
        "STOPS A RUN  worker 1: no GPU",
        "SLOWS A RUN  slow disk",
    ]
    found = json.loads(format_json([first, second]))
    assert found["healthy"] is False
    assert found["workers"][1]["stops"] == ["no GPU"]
    assert Diagnosis.from_json(second.to_json()) == second
    well = format_table([Diagnosis(facts={"memory": "4 GiB"})])
    assert well.endswith("nothing found that would stop or slow a run")
