"""What a data set is: its splits in memory, its classes, its checksum."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

_NUM_SHADED = 1000  # images whose edges tell whether a data set is light on dark
# How far the edge of an image is from the mean of all if it is their inverse.
_INVERSE = 128

# `Dataset.checksum` of MNIST, which is bundled with the package.
MNIST_CHECKSUM = "2387c2615e6e9deeb34bfac7e7fd153f3730fe7ae22a7c294f5697f1cb503ad5"


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples in file order.

    Attributes:
      name: "train", "validation" or "test".
      images: uint8 [n, height, width, channels], 0 to 255, 1 or 3 channels.
      labels: int32 [n], 0 to num_classes - 1.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray

    def take(self, indices: np.ndarray, *, name: str | None = None) -> Split:
        """Returns the examples at `indices` (int [k]) as a split of their own."""
        return Split(name or self.name, self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
      source: where it came from, for a person to read.
      train: the examples to train on, without those of `validation`.
      validation: the validation split that the data set is published with, or the
        training examples that were set apart; None if there are none.
      test: the test examples.
      num_classes: largest label of all splits + 1, at least 2.
      checksum: SHA-256 (hex) of all images, labels and shapes before validation
        examples were set apart. The same data give the same checksum in whatever
        form they are stored.
      class_names: the name of each class, `num_classes` of them; None where the
        data have only numbers.
      notes: what was done to read it, or left out, for a person to read.
    """

    source: str
    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    checksum: str
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels

    @property
    def evaluation(self) -> Split:
        """What to evaluate on while training: validation if there is one, or test."""
        return self.test if self.validation is None else self.validation

    @property
    def edge_shade(self) -> float:
        """Mean of the edge pixels of the first training images, 0 (black) to 255."""
        return mean_edge(self.train.images[:_NUM_SHADED])

    @property
    def inverse_share(self) -> float:
        """Share of those images that are the inverse of the others: 0 to 1."""
        is_inverse = has_inverse_edge(self.train.images[:_NUM_SHADED], self.edge_shade)
        return float(is_inverse.mean())

    @property
    def num_bytes(self) -> int:
        """Bytes of the images that training and evaluation use."""
        return self.train.images.nbytes + self.evaluation.images.nbytes


def mean_edge(images: np.ndarray) -> float:
    """Returns the mean of the edge pixels of images, uint8 [n, h, w] or [n, h, w, c]."""
    rows, columns = images[:, [0, -1]], images[:, 1:-1, [0, -1]]
    total = rows.sum(dtype=np.int64) + columns.sum(dtype=np.int64)
    return float(total) / max(rows.size + columns.size, 1)


def has_inverse_edge(images: np.ndarray, edge_shade: float) -> np.ndarray:
    """Whether the edges of images are the inverse of what is usual.

    Args:
      images: uint8 [n, h, w] or [n, h, w, c].
      edge_shade: mean of the edge pixels that is usual, 0 to 255.

    Returns:
      bool [n].
    """
    shades = np.array([mean_edge(image[np.newaxis]) for image in images])
    return np.abs(shades - edge_shade) > _INVERSE


def checksum_of(splits: Iterable[Split]) -> str:
    """Returns the SHA-256 (hex) of the splits' names, shapes, images and labels."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"{split.name} {split.images.shape}".encode())
        digest.update(split.images.data)
        digest.update(split.labels.astype("<i4").data)
    return digest.hexdigest()
