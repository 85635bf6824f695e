"""The images and labels that a trained model is evaluated on."""

import dataclasses

import numpy as np
from absl import logging

from mnist_dist.data import Dataset, Split, load_dataset
from mnist_dist.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationData:
    """One split of a data set.

    Attributes:
      split: its images and labels.
      source: where they came from, for a person to read.
      checksum: SHA-256 (hex) of the whole data set; None for arrays in memory.
      class_names: the name of each class; None where the data set has none.
    """

    split: Split
    source: str
    checksum: str | None
    class_names: tuple[str, ...] | None = None


def load_evaluation_data(
    split: str,
    *,
    data_dir: str | None,
    validation_examples: int,
    validation_split: str,
    validation_seed: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> EvaluationData:
    """Loads a split of a data set that a model is to be evaluated on.

    Args:
      split: `train`, `validation` or `test`.
      data_dir: of the data set; None is the bundled MNIST.
      validation_examples: training examples that the model's training set apart.
      validation_split: how it chose them, as `load_dataset` says.
      validation_seed: of that choice: the run's seed.
      image_shape: height, width and channels that the model takes.
      num_classes: of the model.

    Raises:
      InputError: the data set cannot be read, has other images than the model or more
        classes, or no such split.
    """
    # A data set that is only tested on may have fewer examples than were set apart.
    dataset = load_dataset(
        data_dir,
        validation_examples=0 if split == "test" else validation_examples,
        validation_split=validation_split,
        validation_seed=validation_seed,
    )
    return select_split(
        dataset, split, image_shape=image_shape, num_classes=num_classes
    )


def select_split(
    dataset: Dataset,
    split: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> EvaluationData:
    """Returns a split of a data set, once it is known to fit a model.

    Raises:
      InputError: the images have another shape, there are more classes than the
        model has, or there is no such split.
    """
    if dataset.image_shape != image_shape:
        raise InputError(
            f"--data_dir: {dataset.source} has images of shape {dataset.image_shape}, "
            f"expected {image_shape}, which the model takes"
        )
    if dataset.num_classes > num_classes:
        raise InputError(
            f"--data_dir: {dataset.source} has {dataset.num_classes} classes, expected "
            f"at most the model's {num_classes}"
        )
    splits = {part.name: part for part in (dataset.train, dataset.test)}
    if dataset.validation is not None:
        splits["validation"] = dataset.validation
    if split not in splits:
        raise InputError(
            f"--split: found {split}, expected {' or '.join(splits)}, which this data "
            "set has; a run sets validation examples apart with --validation_examples"
        )
    return EvaluationData(
        splits[split], dataset.source, dataset.checksum, dataset.class_names
    )


def arrays_as_data(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> EvaluationData:
    """Returns images and labels in memory as data to evaluate on.

    Args:
      images: uint8 [n, height, width, channels], or [n, height, width] for grey ones.
      labels: integers [n], 0 to num_classes - 1.
      image_shape: height, width and channels that the model takes.
      num_classes: of the model.

    Raises:
      InputError: they are not of this form, or do not fit the model.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.shape[1:] != image_shape or not len(images):
        raise InputError(
            f"data: found images {images.dtype} {list(images.shape)}, expected uint8 "
            f"{['n', *image_shape]}, which the model takes"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise InputError(
            f"data: found labels {labels.dtype} {list(labels.shape)}, expected an "
            f"integer for each of the {len(images)} images"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"data: found labels {labels.min()} to {labels.max()}, expected 0 to "
            f"{num_classes - 1}"
        )
    split = Split("data", images, labels.astype(np.int32))
    return EvaluationData(split, "arrays in memory", None)


def warn_of_other_data(
    model: str, *, expected: str | None, data: EvaluationData
) -> None:
    """Warns if a data set is not the one that a model was trained on.

    Args:
      model: its name.
      expected: checksum of what it was trained on; None or empty if that is not known.
      data: what it is evaluated on.
    """
    if expected and data.checksum and data.checksum != expected:
        logging.warning(
            "%s was trained on other data than what is now in %s (SHA-256 %s..., not "
            "%s...): the results may mean nothing",
            model,
            data.source,
            data.checksum[:12],
            expected[:12],
        )
