"""Four logical CPUs for every test: one process serves all replica counts."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
import tensorflow as tf
from forked import ForkServer

from mnist_dist.data import load_dataset
from mnist_dist.device.devices import split_cpu

split_cpu(4)


@pytest.fixture(scope="session")
def create_strategy():
    def create(num_replicas: int) -> tf.distribute.Strategy:
        if num_replicas == 1:
            return tf.distribute.OneDeviceStrategy("/device:CPU:0")
        return tf.distribute.MirroredStrategy(
            [f"/device:CPU:{i}" for i in range(num_replicas)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )

    return create


@pytest.fixture(scope="session")
def mnist():
    return load_dataset()


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    server = ForkServer(tmp_path_factory.mktemp("outputs"))
    yield server
    server.close()
