import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from mnist_dist.cluster import Cluster, find_cluster, meet_peers
from mnist_dist.errors import InputError, PeerError


def tf_config(cluster, task_type="worker", index=0):
    task = {"type": task_type, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def test_flags_come_first_then_tf_config_then_slurm_then_one_worker(slurm):
    config = tf_config({"worker": ["c:1", "d:2"]}, index=1)
    found = find_cluster(config | slurm, worker_hosts="a:1,b:2", task_index=1)
    assert (found.source, found.workers, found.rank) == (
        "--worker_hosts",
        ("a:1", "b:2"),
        1,
    )
    assert find_cluster(config | slurm).source == "TF_CONFIG"
    assert find_cluster(slurm).source == "Slurm"
    assert find_cluster({}) == Cluster("no cluster")
    assert find_cluster({"TF_CONFIG": ""}).num_workers == 1
    assert find_cluster({}).is_chief


def test_tf_config_without_chief_makes_worker_0_chief():
    workers = {"worker": ["a:1", "a:2", "b:1"]}
    found = [find_cluster(tf_config(workers, index=i)) for i in range(3)]
    assert [c.is_chief for c in found] == [True, False, False]
    assert [c.host_peers for c in found] == [[0, 1], [0, 1], [2]]


def test_tf_config_chief_is_rank_0_and_workers_follow():
    cluster = {"worker": ["a:1", "b:1"], "chief": ["c:1"]}
    chief = find_cluster(tf_config(cluster, "chief"))
    second = find_cluster(tf_config(cluster, "worker", 1))
    assert chief.workers == second.workers == ("c:1", "a:1", "b:1")
    assert (chief.rank, chief.is_chief) == (0, True)
    assert (second.rank, second.is_chief) == (2, False)


def test_tf_config_evaluator_is_no_worker():
    found = find_cluster(tf_config({"worker": ["a:1", "b:1"]}, "evaluator"))
    assert found.is_evaluator
    assert not found.is_chief
    assert found.num_workers == 2


def test_start_line_says_source_peers_rank_and_chief():
    found = find_cluster({}, worker_hosts="a:1,b:2", task_index=1)
    assert found.describe() == (
        "--worker_hosts: worker 1 of 2 (a:1, b:2); worker 0 is chief"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "found no cluster"),
        ("{}", "found no cluster"),
        ('{"cluster": {}, "task": {"type": "worker", "index": 0}}', "no worker"),
        ('{"cluster": {"worker": "a:1"}}', "no list"),
        ('{"cluster": {"worker": ["a:1"]}}', "found task None"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}', "found ps"),
        ('{"cluster": {"chief": ["a:1", "b:1"]}}', "found 2 chiefs"),
    ],
)
def test_wrong_tf_config_is_named(text, message):
    with pytest.raises(InputError, match="TF_CONFIG") as error:
        find_cluster({"TF_CONFIG": text})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cluster", "task_type", "index", "message"),
    [
        ({"worker": ["a:1", "b:1"]}, "worker", 2, "index: found 2, expected 0 to 1"),
        ({"worker": ["a:1", "b:1"]}, "worker", -1, "index: found -1"),
        ({"worker": ["a:1", "b:1"]}, "worker", True, "index: found True"),
        ({"worker": ["a:1", "b:1"]}, "chief", 0, "chief index: found 0"),
        ({"worker": ["a:1", "b:1"]}, "ps", 0, "task type 'ps'"),
        ({"worker": ["a:1", "a:1"]}, "worker", 0, "found a:1 twice"),
        ({"worker": ["a:1", "b:one"]}, "worker", 0, "found 'b:one'"),
        ({"worker": ["a:1", "b:65536"]}, "worker", 0, "found 'b:65536'"),
        ({"worker": ["a:1", "b"]}, "worker", 0, "found 'b', expected host:port"),
        ({"worker": ["a:1", 7]}, "worker", 0, "found 7"),
        ({"worker": ["a:1", None]}, "worker", 0, "found None"),
    ],
)
def test_wrong_cluster_in_tf_config_is_named(cluster, task_type, index, message):
    with pytest.raises(InputError) as error:
        find_cluster(tf_config(cluster, task_type, index))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("hosts", "index", "message"),
    [
        ("a:1,b:1", None, "--task_index: found nothing"),
        ("a:1,b:1", 2, "--task_index: found 2, expected 0 to 1"),
        ("a:1,,b:1", 0, "--worker_hosts: found ''"),
        ("a:1,a:1", 0, "--worker_hosts: found a:1 twice"),
        (None, 1, "--task_index: found 1 without --worker_hosts"),
    ],
)
def test_wrong_flags_are_named(hosts, index, message):
    with pytest.raises(InputError) as error:
        find_cluster({}, worker_hosts=hosts, task_index=index)
    assert message in str(error.value)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Environment of the fourth task of five, on n10 (at far10) of n9 and n10."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        '"show hostnames n[9-10]") printf "n9\\nn10\\n" ;;\n'
        '"--oneliner show node n[9-10]") echo "NodeName=n10 Arch=x NodeAddr=far10 Port=1"'
        " ;;\n*) exit 1 ;;\nesac\n"
    )
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return {
        "SLURM_JOB_ID": "3",
        "SLURM_STEP_NODELIST": "n[9-10]",
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_TASKS_PER_NODE": "3,2",
        "SLURM_PROCID": "3",
        "SLURM_NODEID": "1",
        "SLURM_LOCALID": "0",
    }


def test_slurm_gives_workers_in_node_list_order_with_ports_of_their_own(slurm):
    found = find_cluster(slurm)
    hosts, ports = zip(*(w.split(":") for w in found.workers), strict=True)
    assert hosts == ("n9", "n9", "n9", "far10", "far10")
    assert len(set(ports)) == 5
    assert found.rank == 3
    assert found.host_peers == [3, 4]
    next_job = find_cluster(slurm | {"SLURM_JOB_ID": "4"})
    assert not set(found.workers) & set(next_job.workers)


def test_slurm_gpus_are_shared_out_unless_bound_to_tasks(slurm):
    seen = slurm | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert not find_cluster(seen).has_own_gpus
    assert find_cluster(seen | {"SLURM_GPUS_PER_TASK": "1"}).has_own_gpus


def test_slurm_step_of_one_task_is_one_worker(slurm):
    assert find_cluster(slurm | {"SLURM_STEP_NUM_TASKS": "1"}).num_workers == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID: found 'x'"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, "found 1 nodes, expected the 2"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3,y"}, "found '3,y'"),
        ({"SLURM_STEP_NODELIST": "m1"}, "scontrol show hostnames m1 failed"),
        ({"SLURM_LOCALID": "1"}, "--distribution=block"),
    ],
)
def test_wrong_slurm_environment_is_named(slurm, change, message):
    with pytest.raises(InputError) as error:
        find_cluster(slurm | change)
    assert message in str(error.value)


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    for s in sockets:
        s.close()
    return addresses


def meet_all(delays, greetings=None, timeout=5.0):
    """Lets a thread for each worker meet the others; returns what each raised."""
    addresses = free_addresses(len(delays))
    outcomes = [None] * len(delays)

    def meet(rank):
        time.sleep(delays[rank])
        greeting = greetings[rank] if greetings else {}
        try:
            meet_peers(
                Cluster("test", addresses, rank), greeting=greeting, timeout=timeout
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


def test_worker_started_otherwise_is_refused_by_all():
    greetings = [{"seed": 1, "b": 2}, {"seed": 2, "b": 2}]
    _, outcomes = meet_all((0, 0.3), greetings)
    assert [type(o) for o in outcomes] == [InputError, InputError]
    assert "seed is 1 here, 2 there" in str(outcomes[0])


def test_stranger_on_the_port_is_no_peer_and_does_no_harm():
    addresses = free_addresses(2)
    stop = threading.Event()

    def pester():
        port = int(addresses[0].split(":")[1])
        while not stop.is_set():
            for junk in (b"", b"GET / HTTP/1.0\r\n\r\n", b"{}\n", b'{"rank": []}\n'):
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


def test_process_that_holds_the_interpreter_is_ended_in_time():
    code = (
        "import re\n"
        "from mnist_dist.cluster import exits_unless_done_within as limit\n"
        "with limit(0.2, code=3): pass\n"
        "with limit(0.5, code=143): re.match('(a+)+$', 'a' * 50 + 'b')\n"
    )
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert result.returncode == 143
    assert time.monotonic() - began < 5
