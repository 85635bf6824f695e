"""A run of two replicas that lasts long enough to be disturbed, and its undisturbed end."""

import numpy as np
from small_mnist import small_mnist

from mnist_dist.run.checkpoints import load_arrays

STEPS = 1200
FLAGS = [
    f"--data_dir={small_mnist()}",
    "--model=mlp",
    f"--train_steps={STEPS}",
    "--global_batch_size=64",
    "--checkpoint_interval=100",
    "--summary_interval=100",
    "--eval_interval=600",
    "--enable_xla=off",
    "--noexport",
]


def train_undisturbed(fork_server, folder):
    """Trains two replicas in one process; returns the arrays of its last checkpoint.

    Two workers compute the same to the last bit: each replica's shapes and threads are
    the same, and of two gradients the sum is the same in either order.
    """
    process = fork_server.start(
        "mnist_dist.train",
        f"--model_dir={folder}",
        *FLAGS,
        "--distribution_strategy=mirrored",
        "--logical_cpus=2",
    )
    assert process.wait() == 0, process.stderr()
    return load_arrays(f"{folder}/checkpoints/ckpt-{STEPS}")


def assert_same_training(found, expected):
    """Weights, averages and the optimizer's state are the same to the last bit."""
    names = [n for n in expected if n.startswith(("model/", "ema/", "optimizer/"))]
    assert names
    for name in ["step", *names]:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
