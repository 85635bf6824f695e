"""Where the examples lie."""

import numpy as np
import pytest
import tensorflow as tf

from mnist_dist.data import Split
from mnist_dist.device.feed import DeviceSplit


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize(
    ("create", "expected"),
    [
        (lambda: tf.distribute.OneDeviceStrategy("/device:CPU:2"), ["CPU:2"]),
        (
            lambda: tf.distribute.MirroredStrategy(
                ["/device:CPU:1", "/device:CPU:3"],
                cross_device_ops=tf.distribute.ReductionToOneDevice(),
            ),
            ["CPU:1", "CPU:3"],
        ),
    ],
)
def test_each_replica_has_its_copy_on_its_own_device(create, expected, is_resident):
    strategy = create()
    split = Split(
        "train",
        np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1),
        np.arange(6, dtype=np.int32),
    )
    data = DeviceSplit(strategy, split, is_resident=is_resident)
    images, labels, indices = data.feed(np.array([4, 1], np.int32))
    for values, array in ((images, split.images), (labels, split.labels)):
        copies = strategy.experimental_local_results(values)
        assert [c.device.partition("device:")[2] for c in copies] == expected
        for copy in copies:
            found = copy.numpy()[indices.numpy()]
            np.testing.assert_array_equal(found, array[[4, 1]])
