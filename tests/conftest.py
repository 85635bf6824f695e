"""Fixtures of all tests, and the order in which the files are run."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# All tests and what they start compute on CPUs: equal bits are promised there, and one
# GPU would not do for two workers. What a GPU decides is tested with stand-ins.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import pytest
import xdist
from forked import ForkServer

# Several processes take file after file: what takes long comes first, beginning with
# what mostly waits, and is not left over at the end.
LONGEST = (
    "test_slurm",
    "test_multi_worker",
    "test_elastic",
    "test_train",
    "test_slurm_journey",
    "test_train_loop",
    "test_separate_hosts",
    "test_tensorboard",
    "test_formats",
    "test_microbatches",
    "test_python_api",
    "test_readme",
)


def pytest_collection_modifyitems(items):
    def rank(item):
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


def pytest_sessionstart(session):
    """Makes four logical CPUs: one process serves all replica counts."""
    if not xdist.is_xdist_controller(session):  # which runs no test
        from mnist_dist.device.devices import split_cpu

        split_cpu(4)


def pytest_sessionfinish(session):
    """A run that executed no test is no success, also if all were skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or session.config.option.collectonly:
        return
    if session.exitstatus == pytest.ExitCode.OK and "passed" not in reporter.stats:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture(scope="session")
def create_strategy():
    import tensorflow as tf

    def create(num_replicas):
        if num_replicas == 1:
            return tf.distribute.OneDeviceStrategy("/device:CPU:0")
        return tf.distribute.MirroredStrategy(
            [f"/device:CPU:{i}" for i in range(num_replicas)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )

    return create


@pytest.fixture(scope="session")
def mnist():
    from mnist_dist.data import load_dataset

    return load_dataset()


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    server = ForkServer(tmp_path_factory.mktemp("outputs"))
    yield server
    server.close()
