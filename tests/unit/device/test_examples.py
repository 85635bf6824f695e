"""What the loops gather is what the data set holds."""

import numpy as np
import pytest
import tensorflow as tf

from mnist_dist.device.examples import gather_images, rows_for_gather


# Rows of whole words, of less than one, and with one that is not full.
@pytest.mark.parametrize("image_shape", [(28, 28, 1), (1, 1, 1), (5, 7, 3)])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_gathered_images_are_those_of_the_split(image_shape, is_compiled):
    images = np.random.default_rng(0).integers(0, 256, (11, *image_shape), np.uint8)
    indices = np.array([3, 3, 10, 0])

    @tf.function(jit_compile=is_compiled)
    def gather(images, labels, indices):
        rows, labels = rows_for_gather(images, labels, is_compiled=is_compiled)
        gathered = gather_images(rows, indices, image_shape=image_shape)
        return gathered, tf.gather(labels, indices)

    found, labels = gather(images, np.arange(11), indices)
    np.testing.assert_array_equal(found, images[indices])
    np.testing.assert_array_equal(labels, indices)
