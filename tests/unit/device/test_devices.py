"""What a process does with GPUs that it sees: with stand-ins, since there are none here."""

import pytest
import tensorflow as tf

from mnist_dist.device import devices
from mnist_dist.errors import InputError

# TensorFlow's Python half is told of two GPUs before it starts. The native half knows of
# none and would refuse to start with one that is not hidden.
TWO_GPUS = """
import tensorflow as tf
from tensorflow.python.eager import context
context.context()._initialize_physical_devices()
gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{i}", "GPU") for i in range(2)]
context.context()._physical_devices += gpus
context.context()._visible_device_list += gpus
context.context()._memory_growth_map |= dict.fromkeys(gpus)
from mnist_dist.cluster.membership import Cluster
from mnist_dist.device import devices
from mnist_dist.errors import InputError
ONE = Cluster("one worker")
def limits(gpu):
    parts = tf.config.get_logical_device_configuration(gpu) or []
    return [part.memory_limit for part in parts]
"""


def run(fork_server, program):
    process = fork_server.start("-c", TWO_GPUS + program)
    assert process.wait() == 0, process.stderr()
    return process.stdout()


def test_gpus_that_a_run_does_not_use_are_hidden_from_all_of_tensorflow(fork_server):
    program = """
from mnist_dist.device.strategy import create_strategy
strategy = create_strategy({arguments})
assert tf.config.get_visible_devices("GPU") == []
assert tf.config.list_logical_devices("GPU") == []
assert devices.gpu_memory(strategy.extended.worker_devices) is None
"""
    for arguments in ("num_gpus=0", "logical_cpus=2"):
        run(fork_server, program.format(arguments=arguments))


def test_a_gpu_is_split_into_devices_with_a_limit_each(fork_server):
    run(
        fork_server,
        """
chosen = devices.choose_gpus(ONE, num_gpus=1, logical_gpus=3, gpu_memory_limit=512)
assert chosen == gpus[:1] == tf.config.get_visible_devices("GPU")
assert limits(gpus[0]) == [512] * 3 and limits(gpus[1]) == []
assert not tf.config.experimental.get_memory_growth(gpus[0])
""",
    )


def test_a_gpus_memory_grows_unless_a_limit_is_set(fork_server):
    run(
        fork_server,
        """
assert devices.choose_gpus(ONE, num_gpus=-1) == gpus
assert all(map(tf.config.experimental.get_memory_growth, gpus))
devices.choose_gpus(ONE, num_gpus=-1, gpu_memory_limit=256)
assert [limits(gpu) for gpu in gpus] == [[256], [256]]
""",
    )


@pytest.mark.parametrize("verb", ["predict", "weights", "export"])
def test_programs_beside_a_training_leave_it_the_gpus(fork_server, tmp_path, verb):
    (tmp_path / "digit.png").touch()
    arguments = {
        "predict": ["--export_dir=nowhere", "digit.png"],
        "weights": ["list", "--from=nowhere.npz"],
        "export": ["--model_dir=nowhere"],
    }[verb]
    program = f"""
import sys
from mnist_dist.cli import program
sys.argv = ["{verb}", *{arguments}]
from mnist_dist import {verb}
try:
    program.run({verb}.main, takes_arguments=True)
except SystemExit as error:
    assert error.code == 2, error.code
assert tf.config.get_visible_devices("GPU") == []
"""
    run(fork_server, program)


def test_logical_gpus_without_a_gpu_are_refused():
    with pytest.raises(InputError, match="--logical_gpus: found 2 and no GPU"):
        devices.choose_gpus(
            devices.Cluster("one worker"),
            num_gpus=-1,
            logical_gpus=2,
            gpu_memory_limit=64,
        )


def test_memory_is_that_of_the_smallest_gpu_that_this_process_started(monkeypatch):
    started = [("CPU:0", 1), ("GPU:0", 70), ("GPU:1", 50), ("GPU:2", 60)]
    session = devices.pywrap_tf_session
    monkeypatch.setattr(session, "TF_DeviceListCount", lambda _: len(started))
    for function, value in (
        ("Name", lambda i: f"/job:localhost/replica:0/task:0/device:{started[i][0]}"),
        ("MemoryBytes", lambda i: started[i][1]),
    ):
        monkeypatch.setattr(
            session, f"TF_DeviceList{function}", lambda _, i, value=value: value(i)
        )
    assert devices.gpu_memory(["/device:GPU:0", "/device:GPU:2"]) == 60
    assert devices.gpu_memory(["/job:localhost/replica:0/task:0/device:GPU:1"]) == 50
    assert devices.gpu_memory(["/device:CPU:0"]) is None
    assert tf.config.list_logical_devices("GPU") == []


def test_this_suite_and_what_it_starts_see_no_gpu_of_the_machine(fork_server):
    program = """
import os, tensorflow as tf
from mnist_dist.cluster.membership import hides_all_gpus
assert hides_all_gpus(os.environ)
assert tf.config.list_physical_devices("GPU") == []
"""
    exec(program)
    process = fork_server.start("-c", program)
    assert process.wait() == 0, process.stderr()
