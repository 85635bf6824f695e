"""A small part of MNIST, for tests that train and whose subject is not the data."""

import functools
import gzip
import tempfile
from pathlib import Path

import numpy as np

import mnist_dist.data

NUM_TRAIN, NUM_TEST = 4_000, 1_000


@functools.cache
def small_mnist() -> str:
    """Returns the path of a data set for `--data_dir`, written once a process.

    Its 4,000 training images are the first of MNIST's 10,000 test images, its 1,000
    test images the next: a training on it starts in half the time.
    """
    folder = Path(mnist_dist.data.__file__).parent / "bundled"
    images, labels = (
        np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=n)
        for name, n in (
            ("t10k-images-idx3-ubyte.gz", 16),
            ("t10k-labels-idx1-ubyte.gz", 8),
        )
    )
    images = images.reshape(-1, 28, 28)
    train, test = slice(NUM_TRAIN), slice(NUM_TRAIN, NUM_TRAIN + NUM_TEST)
    path = Path(_folder().name) / "small_mnist.npz"
    np.savez(
        path,
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
    )
    return str(path)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # removed when the process ends
