"""Bring pictures, of any size and colour, into the form a model was trained on."""

from __future__ import annotations

import math

import numpy as np
from absl import logging
from PIL import Image

from mnist_dist.data.dataset import has_inverse_edge, mean_edge
from mnist_dist.errors import InputError
from mnist_dist.pictures.digit_finding import find_digit

PREPROCESS = ("auto", "mnist", "resize", "off")

# Side of the picture in which a digit is looked for: fine enough for one that fills
# a tenth of it, small enough to make the time for it short.
_SEARCH_SIDE = 256
# MNIST's digits fill a box of 20 x 20 pixels of the 28 x 28.
_BOX = 20 / 28
# A digit whose lightest pixel is darker is made lighter.
_FAINT = 200
# A picture is rarely longer in one direction than so many times the other.
_MAX_ELONGATION = 4
# What the edge's mean and the centre of mass of MNIST's own images do not exceed.
_DARK_EDGE, _OFF_CENTRE = 16.0, 0.75
# Nearer to the paper than this share of the way to the ink is paper: its grain.
_GRAIN = 0.05


def fit_images(
    images: np.ndarray,
    *,
    image_shape: tuple[int, int, int],
    preprocess: str,
    are_digits: bool = False,
    edge_shade: float | None = None,
    may_invert: bool = False,
    name: str,
) -> np.ndarray:
    """Returns pictures as a model takes them.

    Args:
      images: uint8 [n, height, width] or [n, height, width, 1 or 3], of any size; or
        [height, width], one picture, or [n, pixels], flat images of the model's size.
      image_shape: height, width and channels (1 or 3) of the model's images.
      preprocess: `mnist`: made grey, then as `to_mnist_form` does it. `resize`:
        scaled to the model's size. `off`: refused if of another size. `auto`:
        pictures of the model's size are left as they are, unless they are digits that
        are not in MNIST's form; others become `mnist` where the model takes grey
        images, `resize` where it takes colour.
      are_digits: whether the model knows MNIST's digits. Then a picture of its size
        that is dark on light, off centre or reaches the edge is no image of MNIST's,
        and `auto` makes it one.
      edge_shade: mean of the edge pixels of the images that the model was trained on,
        0 to 255; None if that is not known.
      may_invert: whether `auto` inverts grey pictures whose edge is light where that of
        the training images is dark, or the other way round.
      name: names the file in errors, and in warnings: where a picture shows several
        digits, of which the one with most ink counts; and where its edge is the inverse
        of that of the training images.

    Returns:
      uint8 [n, height, width, channels]: whatever `preprocess` is, colour is turned
      into grey (its luma) and grey into colour as the model needs it.

    Raises:
      InputError: with `off`, the pictures are of another size; or an array may be one
        picture or flat images.
    """
    height, width, channels = image_shape
    may_invert = may_invert and preprocess == "auto" and channels == 1
    if images.ndim == 2:
        images = _unflatten(images, image_shape, name=name)
    is_of_size = images.shape[1:3] == (height, width)
    if preprocess == "auto" and not is_of_size:
        preprocess = "mnist" if channels == 1 else "resize"
    if preprocess == "off" and not is_of_size:
        raise InputError(
            f"{name}: found {images.shape[2]}x{images.shape[1]} pixels, expected "
            f"{width}x{height}, which the model takes, as nothing may be resized"
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if preprocess == "mnist":
        images = _to_mnist_forms(images, height, width, name=name)
    elif preprocess == "auto" and are_digits and channels == 1:
        images = np.stack([_to_grey(image) for image in images])
        is_own = ~np.array([is_in_mnist_form(image) for image in images])
        if is_own.any():
            images[is_own] = _to_mnist_forms(images[is_own], height, width, name=name)
    elif not is_of_size:
        images = np.stack([_resize(image, height, width) for image in images])
    if images.ndim == 4 and channels == 1:
        images = np.stack([_to_grey(image) for image in images])
    if images.ndim == 3:
        images = np.repeat(images[..., np.newaxis], channels, axis=3)
    if edge_shade is not None:
        is_inverse = has_inverse_edge(images, edge_shade)
        # What was made light on dark has lost its own shades: there is nothing to tell.
        if is_inverse.any() and not (may_invert and preprocess == "mnist"):
            _warn_of_inverse(
                images, is_inverse, edge_shade, is_mended=may_invert, name=name
            )
        if may_invert:
            images = np.where(is_inverse[:, None, None, None], 255 - images, images)
    return images


def _warn_of_inverse(
    images: np.ndarray,
    is_inverse: np.ndarray,
    edge_shade: float,
    *,
    is_mended: bool,
    name: str,
) -> None:
    """Warns of images that are dark on light where the model knows light on dark."""
    shade = mean_edge(images[is_inverse])
    if is_mended:
        cure = "inverted to match them; --preprocess=resize keeps pictures as they are"
    else:
        cure = "the model does not know such pictures; --preprocess=" + (
            "mnist makes it light on dark" if shade > edge_shade else "resize keeps it"
        )
    logging.warning(
        "%s: found an edge of shade %.0f%s where the training images have %.0f (0 is "
        "black, 255 white): %s",
        *(name, shade, _share(is_inverse), edge_shade, cure),
    )


def _share(chosen: np.ndarray) -> str:
    return "" if len(chosen) == 1 else f" in {chosen.sum()} of {len(chosen)} pictures"


def _unflatten(
    array: np.ndarray, image_shape: tuple[int, int, int], *, name: str
) -> np.ndarray:
    """Tells one picture from flat images of the model's size, one in each row."""
    rows, columns = array.shape
    if columns != math.prod(image_shape) or array.shape == image_shape[:2]:
        return array[np.newaxis]
    if columns / _MAX_ELONGATION < rows < columns * _MAX_ELONGATION:
        raise InputError(
            f"{name}: found an array {rows}x{columns}, which may be one picture or "
            f"{rows} flat images of {'x'.join(map(str, image_shape))}; expected "
            f"[{rows}, {', '.join(map(str, image_shape))}] or [1, {rows}, {columns}]"
        )
    return array.reshape(rows, *image_shape)


def is_in_mnist_form(image: np.ndarray) -> bool:
    """Whether a picture may be one of MNIST's own: dark edges, centred by mass.

    All 70,000 images of MNIST are: the mean of the edge is at most 8.4, and the centre
    of mass at most 0.52 pixels from the middle of 28.

    Args:
      image: uint8 [height, width].
    """
    height, width = image.shape
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    mass = image.sum(dtype=np.int64)
    if edge.mean() > _DARK_EDGE or not mass:
        return False
    row = image.sum(axis=1, dtype=np.int64) @ np.arange(height) / mass
    column = image.sum(axis=0, dtype=np.int64) @ np.arange(width) / mass
    return bool(
        abs(row - height / 2) <= _OFF_CENTRE and abs(column - width / 2) <= _OFF_CENTRE
    )


def _to_mnist_forms(
    images: np.ndarray, height: int, width: int, *, name: str
) -> np.ndarray:
    """Returns uint8 [n, height, width]; warns of pictures with several digits."""
    forms, counts = [], []
    for image in images:
        form, num_digits = to_mnist_form(_to_grey(image), height=height, width=width)
        forms.append(form)
        counts.append(num_digits)
    num_several = sum(count > 1 for count in counts)
    if num_several and len(images) == 1:
        logging.warning(
            "%s: found %d digits, the one with most ink is classified", name, counts[0]
        )
    elif num_several:
        logging.warning(
            "%s: found several digits in %d of %d pictures, the one with most ink counts",
            *(name, num_several, len(images)),
        )
    return np.stack(forms)


def to_mnist_form(
    image: np.ndarray, *, height: int, width: int
) -> tuple[np.ndarray, int]:
    """Returns the digit in a picture as the makers of MNIST would have cut it out.

    Light on black (dark ink on light paper is inverted), from 0 for the paper to 255
    for the ink; scaled, its proportions kept, to fill a box of 20/28 of the result;
    its centre of mass in the middle. http://yann.lecun.com/exdb/mnist/

    The picture must show one digit on paper of one shade: the median of the
    picture's edge. The ink is what differs most from that.

    Args:
      image: uint8 [h, w], any size.
      height: of the result.
      width: of the result.

    Returns:
      uint8 [height, width], all 0 if the picture is of one shade; and how many digits
      it seems to show.
    """
    result = np.zeros((height, width), np.uint8)
    factor = max(image.shape) // _SEARCH_SIDE
    if factor > 1:
        image = np.asarray(Image.fromarray(image).reduce(factor))

    found = find_digit(image)
    if found is None:
        return result, 0
    density = np.clip((found.density - _GRAIN) / (1 - _GRAIN), 0, 1)

    scale = min(_BOX * height / density.shape[0], _BOX * width / density.shape[1])
    box = [max(round(scale * side), 1) for side in density.shape]
    digit = _resize(np.rint(density * 255).astype(np.uint8), *box)
    if not digit.any():  # dust, which scaling wiped away
        return result, 0
    if digit.max() < _FAINT:  # a thin pen, which scaling made grey
        digit = np.rint(digit * (255 / digit.max())).astype(np.uint8)
    start = []
    for axis, side in enumerate((height, width)):
        mass = digit.sum(axis=1 - axis, dtype=np.int64)
        center = np.average(np.arange(box[axis]), weights=mass)
        start.append(int(np.clip(round(side / 2 - center), 0, side - box[axis])))
    result[start[0] : start[0] + box[0], start[1] : start[1] + box[1]] = digit
    return result, found.num_digits


def _to_grey(image: np.ndarray) -> np.ndarray:
    """Returns uint8 [h, w]; of colour, the luma (ITU-R BT.601)."""
    return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    # Pillow widens the filter when it scales down: no aliasing.
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(scaled)
