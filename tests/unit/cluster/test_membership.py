import json
import os
import stat

import pytest

from mnist_dist.cluster.membership import Cluster, find_cluster
from mnist_dist.errors import InputError


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


def test_one_worker_in_an_allocation_of_several_nodes_says_how_to_use_them():
    # What salloc sets where it is called, and with it a step of one task on a node.
    step = {"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1"}
    for environ in ({}, step):
        line = find_cluster(environ | {"SLURM_JOB_NUM_NODES": "2"}).describe()
        assert line == (
            "no cluster: one worker; Slurm has allocated 2 nodes, to use them all: "
            "srun --ntasks-per-node=1 --distribution=block mnist-dist train ..."
        )
        alone = find_cluster(environ | {"SLURM_JOB_NUM_NODES": "1"})
        assert alone.describe() == "no cluster: one worker"


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


@pytest.mark.parametrize(
    ("options", "has_own"),
    [
        ({}, False),
        ({"SLURM_GPUS_PER_TASK": "1"}, True),
        ({"SLURM_GPU_BIND": "single:1"}, True),
        ({"SLURM_TRES_BIND": "gres/gpu:per_task:1"}, True),
        ({"SLURM_GPUS_PER_TASK": "1", "SLURM_GPU_BIND": "none"}, False),
        ({"SLURM_GPU_BIND": "verbose,closest"}, False),
        ({"SLURM_GPUS_PER_TASK": "1", "SLURM_TRES_BIND": "gres/gpu:none"}, False),
    ],
)
def test_slurm_gpus_are_shared_out_unless_bound_to_tasks(slurm, options, has_own):
    seen = slurm | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert find_cluster(seen | options).has_own_gpus is has_own


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
