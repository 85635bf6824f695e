"""The form of MNIST: what MNIST's makers say of it, measured on what comes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mnist_dist.errors import InputError
from mnist_dist.pictures.digit_images import fit_images, is_in_mnist_form, to_mnist_form

MNIST_SHAPE = (28, 28, 1)


def fit(images, image_shape=MNIST_SHAPE, preprocess="auto"):
    return fit_images(
        images, image_shape=image_shape, preprocess=preprocess, name="'a.png'"
    )


def form(image, height=28, width=28):
    return to_mnist_form(image, height=height, width=width)[0]


def scaled(image, side):
    return np.asarray(Image.fromarray(image).resize((side, side)))


def placed(image, *, canvas, top, left):
    result = np.zeros((canvas, canvas), np.uint8)
    result[top : top + len(image), left : left + len(image)] = image
    return result


def photographed(image, rng):
    """Blue-grey ink somewhere on yellowish paper, with grain: uint8 [300, 300, 3]."""
    top, left = rng.integers(0, 300 - 120, 2)
    ink = placed(scaled(image, 120), canvas=300, top=top, left=left) / 255.0
    paper, pen = np.array([230.0, 220, 180]), np.array([70.0, 80, 120])
    light = (
        paper + ink[..., np.newaxis] * (pen - paper) + rng.normal(0, 8, (300, 300, 1))
    )
    return light.clip(0, 255).astype(np.uint8)


def num_lit(profile):
    lit = np.flatnonzero(profile > 127)
    return lit[-1] - lit[0] + 1


@pytest.fixture(scope="module")
def digits(mnist):
    return mnist.test.images[:200, :, :, 0]


# What the model's images become.


@pytest.mark.parametrize("preprocess", ["auto", "off", "resize"])
@pytest.mark.parametrize("rank", [3, 4])
def test_images_of_the_models_size_stay_as_they_are(digits, preprocess, rank):
    images = digits if rank == 3 else digits[..., np.newaxis]
    found = fit(images, preprocess=preprocess)
    np.testing.assert_array_equal(found, digits[..., np.newaxis], strict=True)


def test_colour_becomes_its_luma_and_grey_becomes_colour():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    found = fit(colour, (5, 4, 1))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found[..., 0], luma, atol=0.51)

    np.testing.assert_array_equal(fit(colour, (5, 4, 3)), colour, strict=True)
    found = fit(colour[..., 0], (5, 4, 3))
    np.testing.assert_array_equal(found, np.stack([colour[..., 0]] * 3, axis=-1))


def test_auto_is_the_mnist_form_for_grey_models_and_a_resize_for_colour(digits):
    images = np.stack([scaled(image, 56) for image in digits[:5]])
    expected = np.stack([form(image) for image in images])[..., np.newaxis]
    np.testing.assert_array_equal(fit(images), expected)
    np.testing.assert_array_equal(fit(images, preprocess="mnist"), expected)
    resized = np.stack([scaled(image, 28) for image in images])[..., np.newaxis]
    np.testing.assert_array_equal(fit(images, preprocess="resize"), resized)
    assert (resized != expected).any()
    np.testing.assert_array_equal(
        fit(images, (28, 28, 3)), np.repeat(resized, 3, axis=3)
    )


def test_resize_keeps_where_things_are():
    image = np.zeros((1, 40, 60), np.uint8)
    image[:, :20, 30:] = 200  # the upper right quarter
    found = fit(image, (8, 6, 1), "resize")[0, :, :, 0]
    np.testing.assert_allclose(found[:3, 4:], 200, atol=20)  # it rings
    np.testing.assert_allclose(found[5:], 0, atol=20)
    np.testing.assert_allclose(found[:, :2], 0, atol=20)


def test_off_refuses_another_size():
    with pytest.raises(InputError, match=r"^'a.png': found 30x20 pixels, expected 28x"):
        fit(np.zeros((1, 20, 30), np.uint8), preprocess="off")


# The form of MNIST.


def test_mnist_itself_comes_back_nearly_as_it_was(digits):
    difference = np.abs(np.stack([form(d) for d in digits]).astype(int) - digits)
    assert difference.mean() < 3  # of a mean of 33


@pytest.mark.parametrize("side", [56, 140, 900])
def test_digit_fills_the_box_and_its_mass_is_in_the_middle(digits, side):
    difference = 0.0
    for digit in digits[:40]:
        found = form(scaled(digit, side))
        longer = max(num_lit(found.max(axis=0)), num_lit(found.max(axis=1)))
        assert 19 <= longer <= 20
        assert found.max() >= 240
        mass = found / found.sum()
        # MNIST's own is there, to half a pixel.
        assert abs(mass.sum(axis=1) @ np.arange(28) - 14) <= 0.51
        assert abs(mass.sum(axis=0) @ np.arange(28) - 14) <= 0.51
        difference += np.abs(found.astype(int) - digit).mean() / 40
    assert difference < 9  # of a mean of 33


def test_dark_on_light_is_inverted(digits):
    for digit in digits[:40]:
        picture = scaled(digit, 140)
        np.testing.assert_array_equal(form(255 - picture), form(picture))


def test_neither_place_nor_contrast_matter(digits):
    for digit in digits[:40]:
        picture = scaled(digit, 100)
        expected = form(placed(picture, canvas=250, top=0, left=0))
        for top, left in [(150, 150), (149, 3), (50, 77)]:
            moved = placed(picture, canvas=250, top=top, left=left)
            np.testing.assert_array_equal(form(moved), expected)
        faint = 180 - placed(picture, canvas=250, top=9, left=9) // 4
        assert np.abs(form(faint.astype(np.uint8)).astype(int) - expected).mean() < 3


def test_proportions_are_kept_in_images_of_any_shape(digits):
    bar = placed(np.full((80, 80), 255, np.uint8), canvas=200, top=30, left=9)
    bar[:, 49:] = 0  # 80 high, 40 wide
    found = form(bar, height=56, width=84)
    assert found.shape == (56, 84)
    assert num_lit(found.max(axis=1)) == 40
    assert num_lit(found.max(axis=0)) == 20
    wide = form(bar.T, height=56, width=28)
    assert num_lit(wide.max(axis=0)) == 20
    assert num_lit(wide.max(axis=1)) == 10


def test_photographs_are_recognised_as_well_as_mnist(mnist, digits):
    """By the nearest of 5,000 training images, which needs no model."""
    known = mnist.train.images[:5000].reshape(5000, -1).astype(np.float32)
    labels = mnist.test.labels[: len(digits)]

    def accuracy(images):
        flat = images.reshape(len(images), -1).astype(np.float32)
        distance = (known**2).sum(axis=1) - 2 * flat @ known.T
        return np.mean(mnist.train.labels[distance.argmin(axis=1)] == labels)

    rng = np.random.default_rng(0)
    photographs = np.stack([photographed(digit, rng) for digit in digits])
    assert accuracy(digits) > 0.9
    assert accuracy(fit(photographs)) > accuracy(digits) - 0.03


@pytest.mark.parametrize("shade", [0, 100, 255])
@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (300, 700)])
def test_picture_of_one_shade_has_no_digit(shade, shape):
    assert not form(np.full(shape, shade, np.uint8)).any()


def test_dust_is_no_digit():
    dust = np.zeros((300, 300), np.uint8)
    dust[[3, 290], [4, 295]] = 255
    assert not form(dust).any()


@given(
    image=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
@settings(deadline=None)
def test_any_picture_gets_a_form(image, height, width):
    found = form(image, height, width)
    assert found.shape == (height, width)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (2, 9000)])
def test_strips_get_a_form(shape):
    strip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert form(strip).shape == (28, 28)


def fit_digits(images, *, preprocess="auto", are_digits=True):
    return fit_images(
        images,
        image_shape=(28, 28, 1),
        preprocess=preprocess,
        are_digits=are_digits,
        name="images",
    )


def test_images_of_mnist_go_in_as_they_are(mnist):
    for split in (mnist.test, mnist.train):
        assert all(is_in_mnist_form(image[..., 0]) for image in split.images)
    np.testing.assert_array_equal(
        fit_digits(mnist.test.images[:500]), mnist.test.images[:500]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 255 - x,  # dark on light
        lambda x: 255 - x // 3,  # pencil on grey paper
        lambda x: np.roll(x, (4, -4), axis=(1, 2)),  # off centre
        lambda x: np.stack([255 - x[..., 0]] * 3, axis=-1),  # in colour
    ],
)
def test_own_pictures_of_the_models_size_are_brought_into_mnists_form(mnist, change):
    originals = mnist.test.images[:20]
    pictures = change(originals)
    found = fit_digits(pictures)
    np.testing.assert_array_equal(found, fit_digits(pictures, preprocess="mnist"))
    # Near the original, which the picture itself is not.
    distance = np.abs(found.astype(int) - originals).mean(axis=(1, 2, 3))
    grey = pictures[..., :1].astype(int)
    assert np.all(distance < np.abs(grey - originals).mean(axis=(1, 2, 3)) / 2)
    # A model of another data set takes its own images in any form.
    np.testing.assert_array_equal(
        fit_digits(pictures, are_digits=False),
        fit_digits(pictures, preprocess="resize"),
    )


@pytest.mark.parametrize("count", [1, 3, 40, 5000])
def test_flat_images_are_images(mnist, count):
    images = np.resize(mnist.test.images, (count, 28, 28, 1))
    found = fit_digits(images.reshape(count, 784))
    np.testing.assert_array_equal(found, images)


def test_array_that_may_be_a_picture_or_flat_images_is_refused():
    with pytest.raises(
        InputError, match="600x784, which may be one picture or 600 flat"
    ):
        fit_digits(np.zeros((600, 784), np.uint8))
    assert fit_digits(np.zeros((60, 50), np.uint8)).shape == (1, 28, 28, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_inverse_of_the_training_images_is_told(digits, caplog, channels):
    def classify(images, **options):
        fit_images(
            images,
            image_shape=(28, 28, channels),
            edge_shade=3.0,
            name="own.png",
            **options,
        )
        return [record.getMessage() for record in caplog.records]

    assert classify(digits, preprocess="auto") == []
    assert classify(255 - digits[:1], preprocess="mnist") == []
    (message,) = classify(255 - digits[:1], preprocess="auto")
    assert message == (
        "own.png: found an edge of shade 255 where the training images have 3 (0 is "
        "black, 255 white): the model does not know such pictures; --preprocess=mnist "
        "makes it light on dark"
    )
    caplog.clear()
    several = np.concatenate([digits[:3], 255 - digits[:2]])
    (message,) = classify(several, preprocess="auto")
    assert "of shade 255 in 2 of 5 pictures where" in message


@pytest.mark.parametrize("is_light_on_dark", [True, False])
def test_inverse_of_any_training_images_is_inverted_by_auto(
    digits, caplog, is_light_on_dark
):
    known = digits if is_light_on_dark else 255 - digits

    def fit(images, *, channels=1, **options):
        caplog.clear()
        found = fit_images(
            images,
            image_shape=(28, 28, channels),
            edge_shade=3.0 if is_light_on_dark else 252.0,
            may_invert=True,
            name="own.png",
            **options,
        )
        return found, [record.getMessage() for record in caplog.records]

    found, messages = fit(known, preprocess="auto")
    np.testing.assert_array_equal(found[..., 0], known)
    assert messages == []
    mixed = np.concatenate([known[:3], 255 - known[3:5]])
    found, (message,) = fit(mixed, preprocess="auto")
    np.testing.assert_array_equal(found[..., 0], known[:5])
    assert "in 2 of 5 pictures where" in message
    assert "inverted to match them; --preprocess=resize keeps" in message
    # What is asked for is done, and colours have no inverse that means the same.
    for options in ({"preprocess": "resize"}, {"preprocess": "auto", "channels": 3}):
        found, (message,) = fit(255 - known, **options)
        np.testing.assert_array_equal(found[..., 0], 255 - known)
        assert "does not know such pictures" in message
    # A photograph of another size is cut out first, and then of the model's kind.
    large = np.kron(digits[:1], np.ones((1, 4, 4), np.uint8))
    for photograph in (large, 255 - large):
        found, messages = fit(photograph, preprocess="auto")
        distance = np.abs(found[0, ..., 0].astype(int) - known[0]).mean()
        assert distance < 20 < np.abs(255 - 2 * known[0].astype(int)).mean()
        assert messages == []
