"""Pictures for TensorBoard, pixel by pixel."""

import numpy as np

from mnist_dist.run.board_images import draw_captioned_grid, draw_filters


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


def test_caption_is_black_on_white_below_its_enlarged_image():
    images = np.random.default_rng(0).integers(0, 256, (2, 10, 20, 1), np.uint8)
    lines = [("is 4", "98% for 9"), ("is 4", "W" * 99)]
    drawn = draw_captioned_grid(images, lines, columns=2)
    assert drawn.shape == (50 + 2 * 16 + 1, 2 * (100 + 1), 3)
    enlarged = images[1].repeat(5, axis=0).repeat(5, axis=1)
    np.testing.assert_array_equal(drawn[:50, 101:201], np.tile(enlarged, 3))
    first, second = drawn[50:82, :100], drawn[50:82, 101:201]
    np.testing.assert_array_equal(first[:16], second[:16])
    assert (first[:16].min(), first[:16].max()) == (0, 255)
    assert (second[:, 99] == 255).all()  # what is too long is cut before the edge
    assert second[16:].mean() < first[16:].mean() < 255


def test_filters_that_diverged_are_grey_without_a_warning():
    kernel = np.full([2, 2, 1, 2], np.nan, np.float32)
    kernel[:, 0, 0, 0] = 0.5, np.inf
    with np.errstate(all="raise"):
        drawn = draw_filters(kernel, (9, 9, 1))
    assert drawn[:2, :2, 0].tolist() == [[255, 128], [128, 128]]
    assert np.all(drawn[:2, 3:5] == 128)


def test_units_of_a_dense_layer_are_images_too_and_other_kernels_are_not_drawn():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 5, 3, 6))
    flat = draw_filters(kernel.reshape(60, 6), (4, 5, 3))
    np.testing.assert_array_equal(flat, draw_filters(kernel, (4, 5, 3)))
    assert draw_filters(np.ones([7, 6]), (4, 5, 3)).size == 0
    assert draw_filters(np.ones([3, 3, 8, 6]), (4, 5, 3)).size == 0
    assert draw_filters(np.zeros([0]), (4, 5, 3)).size == 0
