"""The choices that a test without GPUs can make; strategies are in test_multi_worker."""

import contextlib

import pytest
import tensorflow as tf

from mnist_dist.cluster.membership import Cluster
from mnist_dist.device import strategy
from mnist_dist.device.devices import share_of_host
from mnist_dist.device.strategy import check_all_reduce
from mnist_dist.errors import InputError

HOSTS = ("a:1", "b:1", "a:2", "a:3")


def shares(gpus, *, has_own_gpus=False, num_gpus=-1):
    return [
        share_of_host(
            gpus, Cluster("test", HOSTS, rank, has_own_gpus=has_own_gpus), num_gpus
        )
        for rank in range(len(HOSTS))
    ]


def test_workers_of_one_host_share_its_gpus_out_equally():
    gpus = [f"GPU:{i}" for i in range(7)]
    assert shares(gpus) == [gpus[0:2], gpus, gpus[2:4], gpus[4:6]]


def test_gpus_of_a_workers_own_are_all_its_own():
    assert shares(["GPU:0"], has_own_gpus=True) == [["GPU:0"]] * 4


def test_worker_alone_has_all():
    cluster = Cluster("test", has_own_gpus=False)
    assert share_of_host(["GPU:0", "GPU:1"], cluster, -1) == ["GPU:0", "GPU:1"]


@pytest.mark.parametrize("logical_cpus", [1, 2, 4])
def test_devices_that_tensorflow_has_started_with_serve_again(logical_cpus):
    for _ in range(2):
        created = strategy.create_strategy(logical_cpus=logical_cpus, num_gpus=0)
        assert created.num_replicas_in_sync == logical_cpus


def test_what_tensorflow_fixes_when_it_starts_is_named():
    tf.constant(0)
    with pytest.raises(InputError) as error:
        strategy.create_strategy(logical_cpus=8)
    assert str(error.value) == (
        "--logical_cpus: found 8, but TensorFlow has started in this process with 4, "
        "which stays so until the process ends; expected the same, or a new process"
    )
    with pytest.raises(InputError, match="started in this process as one worker"):
        strategy.create_strategy(cluster=Cluster("test", ("a:1", "b:1")))


def test_fewer_gpus_than_workers_of_a_host_are_refused_unless_none_is_asked_for():
    with pytest.raises(InputError, match="found 2 GPUs for 3 workers of this host"):
        shares(["GPU:0", "GPU:1"])
    assert shares(["GPU:0", "GPU:1"], num_gpus=0) == [["GPU:0", "GPU:1"]] * 4
    assert shares([]) == [[]] * 4


@pytest.mark.parametrize(
    ("num_workers", "num_gpus", "expected"),
    [
        (1, 0, ["auto", "hierarchical_copy"]),
        (1, 2, ["auto", "hierarchical_copy", "nccl"]),
        (2, 0, ["auto", "ring"]),
        (2, 1, ["auto", "ring", "nccl"]),
    ],
)
def test_ways_to_add_up_that_there_are(num_workers, num_gpus, expected):
    taken = []
    for name in ("auto", "hierarchical_copy", "ring", "nccl"):
        with contextlib.suppress(InputError):
            check_all_reduce(name, num_workers=num_workers, num_gpus=num_gpus)
            taken.append(name)
    assert taken == expected


@pytest.mark.parametrize(
    ("name", "num_workers", "num_gpus", "expected"),
    [
        ("nccl", 2, 0, "auto or ring"),
        ("nccl", 1, 0, "auto or hierarchical_copy"),
        ("hierarchical_copy", 2, 1, "auto, ring or nccl"),
        ("hierarchical_copy", 1, 3, "an even number of them, auto or nccl"),
        ("ring", 1, 2, "auto, hierarchical_copy or nccl"),
    ],
)
def test_all_reduce_that_there_is_not_is_named(name, num_workers, num_gpus, expected):
    with pytest.raises(InputError) as error:
        check_all_reduce(name, num_workers=num_workers, num_gpus=num_gpus)
    assert f"--all_reduce_alg: found {name!r}" in str(error.value)
    assert str(error.value).endswith(f"expected {expected}")
