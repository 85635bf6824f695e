"""Check the arrays of a split, and warn of what is valid but looks wrong."""

from __future__ import annotations

import numpy as np
from absl import logging

from mnist_dist.data.dataset import Dataset, Split
from mnist_dist.data.stored import StoredSplit, listed
from mnist_dist.errors import InputError

MAX_CLASSES = 1 << 16

# Photographs and drawings alike use more than half of the range of a byte.
_MIN_BRIGHTEST = 128
# Floats that were cut to bytes leave a few neighbouring values: 0, 1, 2 and 255.
_FEW_VALUES = 16
_NUM_SAMPLED = 2000


def check_split(name: str, stored: StoredSplit) -> Split:
    """Returns the stored arrays as a split.

    Args:
      name: of the split.
      stored: what was read.

    Raises:
      InputError: an array has another type, shape, length or range than a split has.
    """
    images, labels = stored.images, stored.labels
    shape = check_images_header(images.shape, images.dtype, name=stored.images_name)
    check_labels_header(labels.shape, labels.dtype, name=stored.labels_name)
    if len(images) != len(labels):
        raise InputError(
            f"{stored.labels_name}: found {len(labels)} labels, expected one for each "
            f"of the {len(images)} images in {stored.images_name}"
        )
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0 or largest >= MAX_CLASSES:
        raise InputError(
            f"{stored.labels_name}: found labels from {smallest} to {largest}, "
            f"expected 0 to {MAX_CLASSES - 1}"
        )
    return Split(
        name,
        np.ascontiguousarray(images.reshape(shape)),
        labels.reshape(-1).astype(np.int32),
    )


def check_images_header(
    shape: tuple[int, ...], dtype: np.dtype, *, name: str
) -> tuple[int, int, int, int]:
    """Checks type and shape of an array of images.

    Args:
      shape: (n, height, width), (n, height, width, 1 or 3), or (n, pixels) where
        the pixels are those of a square image.
      dtype: of the array.
      name: names the array in error messages.

    Returns:
      (n, height, width, channels).

    Raises:
      InputError: it is not such an array.
    """
    _check_no_zero(shape, name=name)
    if dtype == np.uint8:
        if len(shape) == 2 and (side := square_side(shape[1])):
            return shape[0], side, side, 1
        if len(shape) == 3:
            return (*shape, 1)
        if len(shape) == 4 and shape[3] in (1, 3):
            return shape
    hint = ""
    if dtype.kind == "f":
        hint = "; of floats from 0 to 1: numpy.rint(255 * x).astype(numpy.uint8)"
    elif len(shape) == 4 and shape[1] in (1, 3):
        hint = "; of channels that come first: x.transpose(0, 2, 3, 1)"
    raise InputError(
        f"{name}: found {dtype} of shape {shape}, expected images: uint8 of shape "
        "(n, height, width), (n, height, width, 1 or 3 channels) or (n, pixels of a "
        f"square){hint}"
    )


def check_labels_header(shape: tuple[int, ...], dtype: np.dtype, *, name: str) -> None:
    """Checks type and shape of an array of labels: integers [n] or [n, 1].

    Raises:
      InputError: it is not such an array. `name` names it.
    """
    _check_no_zero(shape, name=name)
    if dtype.kind not in "iu" or not (len(shape) == 1 or shape[1:] == (1,)):
        hint = ""
        if len(shape) == 2:
            hint = "; of one row of scores a label: y.argmax(axis=1)"
        raise InputError(
            f"{name}: found {dtype} of shape {shape}, expected labels: integers of "
            f"shape (n,) or (n, 1){hint}"
        )


def square_side(num_pixels: int) -> int | None:
    """Returns the side of a square of so many pixels, or None."""
    side = int(np.sqrt(num_pixels) + 0.5)
    return side if side > 1 and side * side == num_pixels else None


def _check_no_zero(shape: tuple[int, ...], *, name: str) -> None:
    if shape and min(shape) < 1:
        raise InputError(f"{name}: found shape {shape}, expected no zero dimension")


def warn_of_suspect_data(dataset: Dataset) -> None:
    """Warns of pixels in another range than 0 to 255, and of classes not trained."""
    for split in (dataset.train, dataset.validation, dataset.test):
        if split is not None and (found := _suspect_pixels(split.images)):
            logging.warning(
                "%s: the pixels of the %s images are %s, expected 0 to 255: a model "
                "sees them divided by 255",
                dataset.source,
                split.name,
                found,
            )
    counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
    untrained = np.flatnonzero(counts == 0)
    if len(untrained):
        names = dataset.class_names or range(dataset.num_classes)
        logging.warning(
            "%s: %d of %d classes have no training example: %s (the labels are %d to "
            "%d)",
            dataset.source,
            len(untrained),
            dataset.num_classes,
            listed([str(names[i]) for i in untrained]),
            dataset.train.labels.min(),
            dataset.train.labels.max(),
        )


def _suspect_pixels(images: np.ndarray) -> str | None:
    """Describes the values of uint8 pixels that are not spread over 0 to 255."""
    brightest = int(images.max())
    if brightest < _MIN_BRIGHTEST:
        return f"{int(images.min())} to {brightest}"
    sample = images[:: max(1, len(images) // _NUM_SAMPLED)]
    values = np.flatnonzero(np.bincount(sample.ravel(), minlength=256))
    if len(values) <= _FEW_VALUES and {0, 1} <= set(values.tolist()):
        return f"only {', '.join(map(str, values))}"
    return None
