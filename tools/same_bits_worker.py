"""A worker of `same_bits.py`: `python -m same_bits_worker REPLICAS FLAGS OF train`.

TensorFlow gives a worker of several only one CPU device. This gives it more, in the place
of a host with several GPUs.
"""

import runpy
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import keras
from tensorflow.python.distribute.collective_all_reduce_strategy import (
    CollectiveAllReduceExtended,
)

from mnist_dist.device.devices import split_cpu


def create_mixed(*, image_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Returns a model with what depends on the batch: statistics, masks, noise."""
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Conv2D(8, 3, strides=2, name="conv"),
            keras.layers.BatchNormalization(momentum=0.9, name="norm"),
            keras.layers.ReLU(),
            keras.layers.SpatialDropout2D(0.1),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(
                num_classes, kernel_regularizer="l2", dtype="float32", name="head"
            ),
        ],
        name="mixed",
    )


def train(num_replicas: int, train_flags: Sequence[str]) -> NoReturn:
    """Is `train` with these flags, on so many parts of the CPU."""

    def local_devices(self: Any, resolver: Any, worker: str) -> tuple[Any, str]:
        del self, resolver
        return tuple(f"{worker}/device:CPU:{i}" for i in range(num_replicas)), "CPU"

    CollectiveAllReduceExtended._initialize_local_devices = local_devices
    split_cpu(num_replicas)
    sys.argv = ["train", *train_flags]
    runpy.run_module("mnist_dist.train", run_name="__main__", alter_sys=True)
    raise AssertionError("the program has ended without ending the process")


if __name__ == "__main__":
    train(int(sys.argv[1]), sys.argv[2:])
