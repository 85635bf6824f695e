"""A SavedModel as a user finds it: the newest version, checked, ready to classify."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mnist_dist.data import MNIST_CHECKSUM
from mnist_dist.errors import InputError
from mnist_dist.files.durable import FILE_ERRORS, describe_error
from mnist_dist.files.local import check_regular_below, plain_folder
from mnist_dist.inference.model_card import load_model_card
from mnist_dist.run.directory import list_version_paths

_RARE = 0.01  # share of the training images


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A SavedModel that was found to work.

    Attributes:
      image_shape: height, width and channels (1 or 3) of the images it takes.
      num_classes: how many classes it tells apart.
      class_names: the name of each class; None where the model card has none.
      edge_shade: mean of the edge pixels of the training images, 0 to 255; None where
        the model card does not say it.
      inverts_pictures: whether pictures whose edges are the inverse of those may be
        inverted: as good as no training image has such edges, as its model card says.
      takes_digits: whether it was trained on MNIST's digits, as its model card says.
      classify: maps images uint8 [n, height, width, channels] to probabilities and
        logits, both float32 [n, num_classes]. Any n, without a new trace.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None
    edge_shade: float | None
    inverts_pictures: bool
    takes_digits: bool
    classify: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def find_saved_model(directory: str) -> str:
    """Returns `directory` if it is a SavedModel, or its newest version.

    Raises:
      InputError: there is none.
    """
    if tf.io.gfile.exists(os.path.join(directory, "saved_model.pb")):
        return directory
    try:
        versions = list_version_paths(directory)
        is_directory = tf.io.gfile.isdir(directory)
    except FILE_ERRORS:
        is_directory = False
    if not is_directory:
        raise InputError(
            f"{directory!r}: no directory that can be listed, expected a SavedModel or one "
            "with its versions"
        )
    if not versions:
        raise InputError(
            f"{directory!r}: found no saved_model.pb and no version (a directory "
            "named by a number), expected one of them"
        )
    return versions[0]


def load_classifier(path: str) -> Classifier:
    """Loads a SavedModel that `train` or `export` wrote, and tries it on one image.

    A SavedModel is a program: load only what you trust.

    Raises:
      InputError: it is damaged, or has no signature `serving_default` that takes
        `images` uint8 [batch, height, width, 1 or 3] and gives `probabilities` and
        `logits` float32 [batch, num_classes]; or a file is not as its card says, or
        is a named pipe or a device.
    """
    check_regular_below(path)
    try:
        with plain_folder(path) as folder:
            loaded = tf.saved_model.load(folder)
    # Damage raises nearly anything; what went wrong is in the message.
    except Exception as error:
        raise _unusable(path, error) from error
    if "serving_default" not in loaded.signatures:
        raise InputError(
            f"{path!r}: found the signatures {sorted(loaded.signatures)}, expected "
            "serving_default"
        )
    serve = loaded.signatures["serving_default"]
    inputs = serve.structured_input_signature[1]
    outputs = serve.structured_outputs
    images = inputs.get("images")
    shape = (
        [] if images is None or images.shape.rank is None else images.shape.as_list()
    )
    if (
        len(inputs) != 1
        or len(shape) != 4
        or shape[0] is not None
        or None in shape[1:]
        or shape[3] not in (1, 3)
        or images.dtype != tf.uint8
    ):
        raise InputError(
            f"{path!r}: serving_default takes {_described(inputs)}, expected images "
            "uint8 (None, height, width, 1 or 3)"
        )
    wanted = [outputs.get("probabilities"), outputs.get("logits")]
    if any(
        output is None or output.dtype != tf.float32 or output.shape.rank != 2
        for output in wanted
    ):
        raise InputError(
            f"{path!r}: serving_default gives {_described(outputs)}, expected "
            "probabilities and logits, float32 (None, classes)"
        )

    def classify(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answers = serve(images=tf.constant(images))
        probabilities = answers["probabilities"].numpy()
        if not np.isfinite(probabilities).all():
            raise InputError(f"{path!r}: gives probabilities that are not finite")
        return probabilities, answers["logits"].numpy()

    try:
        # Missing variables are noticed only now.
        probabilities, _ = classify(np.zeros((1, *shape[1:]), np.uint8))
    except tf.errors.OpError as error:
        raise _unusable(path, error) from error
    data = (load_model_card(path) or {}).get("data") or {}
    inverse_share = data.get("inverse_share")
    return Classifier(
        image_shape=tuple(shape[1:]),
        num_classes=probabilities.shape[1],
        class_names=_check_names(data, path, num_classes=probabilities.shape[1]),
        edge_shade=data.get("edge_shade"),
        inverts_pictures=inverse_share is not None and inverse_share < _RARE,
        takes_digits=data.get("sha256") == MNIST_CHECKSUM,
        classify=classify,
    )


def _check_names(
    data: Mapping[str, Any], path: str, *, num_classes: int
) -> tuple[str, ...] | None:
    names = data.get("class_names")
    if names is None:
        return None
    if len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{path!r}: the model card names {len(names)} classes, expected the names of "
            f"the model's {num_classes}"
        )
    return tuple(names)


def select_best(
    probabilities: np.ndarray, logits: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Selects the most probable classes.

    By the logits, as the SavedModel's own `classes` are: float32 probabilities of
    different logits can be equal. Of equal logits the lower class is first.

    Returns:
      int64 [n, top_k] classes, the most probable first, and float32 [n, top_k] their
      probabilities.
    """
    classes = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    return classes, np.take_along_axis(probabilities, classes, axis=1)


def _described(signature: dict) -> str:
    parts = [f"{name} {s.dtype.name} {s.shape}" for name, s in signature.items()]
    return ", ".join(parts) or "nothing"


def _unusable(path: str, error: Exception) -> InputError:
    reason = describe_error(error)[:300]
    return InputError(f"{path!r}: not a SavedModel that can be used ({reason})")
