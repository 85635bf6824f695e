"""Pictures for TensorBoard, pixel by pixel."""

import numpy as np

from mnist_dist.run.board_images import draw_filters


def test_filters_are_grey_at_zero_and_each_as_strong_as_it_can_be():
    kernel = np.zeros([2, 2, 1, 2], np.float32)
    kernel[0, 0, 0, 0] = 0.5
    kernel[1, 1, 0, 0] = -0.25
    kernel[0, 1, 0, 1] = -2.0
    drawn = draw_filters(kernel, (9, 9, 1))
    assert drawn.dtype == np.uint8
    # Two in a row, each with a line of grey to its right and below.
    assert drawn[:2, :2, 0].tolist() == [[255, 128], [128, 64]]
    assert drawn[:2, 3:5, 0].tolist() == [[128, 0], [128, 128]]


def test_units_of_a_dense_layer_are_images_too_and_other_kernels_are_not_drawn():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 5, 3, 6))
    flat = draw_filters(kernel.reshape(60, 6), (4, 5, 3))
    np.testing.assert_array_equal(flat, draw_filters(kernel, (4, 5, 3)))
    assert draw_filters(np.ones([7, 6]), (4, 5, 3)).size == 0
    assert draw_filters(np.ones([3, 3, 8, 6]), (4, 5, 3)).size == 0
    assert draw_filters(np.zeros([0]), (4, 5, 3)).size == 0
