"""The bundled MNIST is the published one, complete and unchanged."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mnist_dist.data
from mnist_dist.data import Dataset, load_dataset

BUNDLED = Path(mnist_dist.data.__file__).parent / "bundled"


def listed_checksums() -> dict[str, str]:
    lines = (BUNDLED / "SHA256SUMS").read_text().splitlines()
    pairs = [line.split("  ") for line in lines if not line.startswith("#")]
    return {name: checksum for checksum, name in pairs}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset()


def test_every_file_and_its_content_have_the_listed_checksum():
    found = {}
    for path in BUNDLED.glob("*.gz"):
        content = path.read_bytes()
        found[path.name] = hashlib.sha256(content).hexdigest()
        found[path.stem] = hashlib.sha256(gzip.decompress(content)).hexdigest()
    assert len(found) == 8
    assert found == listed_checksums()


def test_shapes_and_types(dataset):
    assert dataset.train.images.shape == (60000, 28, 28, 1)
    assert dataset.test.images.shape == (10000, 28, 28, 1)
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert split.labels.shape == (len(split.images),)
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.num_classes == 10


def test_labels_are_those_of_mnist(dataset):
    np.testing.assert_array_equal(dataset.train.labels[:5], [5, 0, 4, 1, 9])
    np.testing.assert_array_equal(dataset.test.labels[:5], [7, 2, 1, 0, 4])
    np.testing.assert_array_equal(
        np.bincount(dataset.train.labels),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )
    np.testing.assert_array_equal(
        np.bincount(dataset.test.labels),
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    )


def test_pixels_have_the_mean_of_mnist(dataset):
    # The constant by which MNIST is normalised everywhere.
    assert round(dataset.train.images.mean() / 255, 4) == 0.1307


def test_checksum_is_stable(dataset):
    """Runs record it: a change would keep every old run from being resumed."""
    assert dataset.checksum == (
        "2387c2615e6e9deeb34bfac7e7fd153f3730fe7ae22a7c294f5697f1cb503ad5"
    )


def test_source_names_it(dataset):
    assert dataset.source == "bundled MNIST"


def test_loading_needs_no_tensorflow():
    program = (
        "import sys, mnist_dist.data;"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
