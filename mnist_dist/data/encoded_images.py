"""Many pictures, each encoded as PNG, JPEG, ..., into one array of images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from mnist_dist.data.stored import StoredSplit
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import MAX_IMAGES_RATIO, max_unpacked_bytes
from mnist_dist.pictures.decoding import decode_picture


def decode_images(
    encoded: Iterable[tuple[str, bytes]], *, count: int, num_bytes: int, name: str
) -> np.ndarray:
    """Decodes pictures, all of one size, to one array.

    Args:
      encoded: for each picture its name for error messages, and its content.
      count: how many there are, at least one.
      num_bytes: of all contents together.
      name: names all of them in error messages.

    Returns:
      uint8 [count, height, width, channels]: one channel if all pictures are grey,
      otherwise three.

    Raises:
      InputError: a picture is damaged or of another size than the first, or all of
        them take more memory than files of their size may.
    """
    images: np.ndarray | None = None
    first = ""
    num_decoded = 0
    for picture_name, content in itertools.islice(encoded, count):
        picture = decode_picture(content, name=picture_name, scale_down=False)
        height, width = picture.shape[:2]
        if images is None:
            first = picture_name
            needed = count * picture.size
            limit = max_unpacked_bytes(num_bytes, max_ratio=MAX_IMAGES_RATIO)
            if needed > limit:
                raise InputError(
                    f"{name}: found {count} pictures of {width}x{height} pixels in "
                    f"{num_bytes} bytes, expected at most {limit} bytes of pixels"
                )
            channels = picture.shape[2] if picture.ndim == 3 else 1
            images = np.empty((count, height, width, channels), np.uint8)
        elif (height, width) != images.shape[1:3]:
            raise InputError(
                f"{picture_name}: found {width}x{height} pixels, expected "
                f"{images.shape[2]}x{images.shape[1]} as in {first}: all pictures of a "
                "data set must be of one size"
            )
        if picture.ndim == 3 and images.shape[3] == 1:
            images = np.repeat(images, 3, axis=3)
        images[num_decoded] = picture if picture.ndim == 3 else picture[..., np.newaxis]
        num_decoded += 1
    if images is None or num_decoded < count:
        raise InputError(f"{name}: found {num_decoded} pictures, expected {count}")
    return images


def with_equal_channels(splits: Mapping[str, StoredSplit]) -> dict[str, StoredSplit]:
    """Returns splits of decoded images, grey ones in colour if others are in colour."""
    channels = max(split.images.shape[3] for split in splits.values())
    return {
        name: dataclasses.replace(split, images=np.repeat(split.images, channels, 3))
        if split.images.shape[3] < channels
        else split
        for name, split in splits.items()
    }
