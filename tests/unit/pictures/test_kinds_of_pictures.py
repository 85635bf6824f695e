"""Digits in the kinds of pictures that people make, classified by their nearest image.

The nearest of 20,000 training images stands for a model: it needs no training, and gets
all of these digits right as MNIST has them.
"""

import io

import numpy as np
import pictures
import pytest
from PIL import Image

from mnist_dist.pictures.decoding import decode_picture
from mnist_dist.pictures.digit_images import fit_images, to_mnist_form

PER_CLASS = 2


class Nearest:
    """Classifies uint8 [n, 28, 28, 1] by the label of the nearest training image."""

    def __init__(self, mnist):
        self.labels = mnist.train.labels[:20_000]
        known = mnist.train.images[:20_000].reshape(20_000, -1)
        self.known = known.astype(np.float32).T
        self.half_squares = (self.known**2).sum(axis=0) / 2

    def __call__(self, images):
        flat = images.reshape(len(images), -1).astype(np.float32)
        return self.labels[np.argmax(flat @ self.known - self.half_squares, axis=1)]


@pytest.fixture(scope="module")
def nearest(mnist):
    return Nearest(mnist)


@pytest.fixture(scope="module")
def digits(mnist, nearest):
    """Two of each class, uint8 [20, 28, 28], and their labels."""
    images, labels = mnist.test.images[:400], mnist.test.labels[:400]
    is_right = nearest(images) == labels
    chosen = [np.flatnonzero(is_right & (labels == c))[:PER_CLASS] for c in range(10)]
    return images[np.concatenate(chosen), :, :, 0], labels[np.concatenate(chosen)]


def as_file(picture):
    """A picture as it comes out of a PNG file, transparency laid on its ground."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return decode_picture(file.getvalue(), name="picture")


@pytest.mark.parametrize("kind", pictures.ONE_DIGIT, ids=lambda kind: kind.__name__)
def test_digit_is_recognised(kind, digits, nearest, caplog):
    rng = np.random.default_rng(0)
    forms = [
        fit_images(
            as_file(kind(digit, rng))[np.newaxis],
            image_shape=(28, 28, 1),
            preprocess="auto",
            are_digits=True,
            name="picture",
        )[0]
        for digit in digits[0]
    ]
    num_right = np.sum(nearest(np.stack(forms)) == digits[1])
    assert num_right >= len(forms) - 1  # scaling to the picture and back changes some
    assert not caplog.records


def test_two_digits_in_one_picture_are_told_and_one_of_them_is_classified(
    digits, nearest, caplog
):
    rng = np.random.default_rng(0)
    images, labels = digits
    both = [
        pictures.two_digits(*pair, rng)
        for pair in zip(images, images[::-1], strict=True)
    ]
    forms, counts = zip(
        *(to_mnist_form(picture, height=28, width=28) for picture in both), strict=True
    )
    assert set(counts) == {2}
    found = nearest(np.stack(forms))
    is_one_of_them = (found == labels) | (found == labels[::-1])
    assert np.sum(is_one_of_them) >= len(both) - 1
    fit = {"image_shape": (28, 28, 1), "preprocess": "auto", "are_digits": True}
    fit_images(both[0][np.newaxis], name="two.png", **fit)
    fit_images(np.stack(both), name="many.npy", **fit)
    assert [record.getMessage() for record in caplog.records] == [
        "two.png: found 2 digits, the one with most ink is classified",
        "many.npy: found several digits in 20 of 20 pictures, the one with most ink counts",
    ]
