"""`model_card.json`: what an exported model is, whence it came, and its files' sums."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mnist_dist.durable_files import is_local
from mnist_dist.errors import InputError

FILE_NAME = "model_card.json"


def save_model_card(directory: str, card: Mapping[str, Any]) -> None:
    """Writes the card of a SavedModel, with the checksums of all its other files.

    Args:
      directory: a version directory, not yet published, with everything else in it.
      card: what is to be said.
    """
    files = {
        name: _file_checksum(os.path.join(directory, name))
        for name in list_files(directory)
    }
    with tf.io.gfile.GFile(os.path.join(directory, FILE_NAME), "w") as file:
        file.write(json.dumps({**card, "files": files}, indent=2) + "\n")


def load_model_card(directory: str) -> dict[str, Any] | None:
    """Reads the card of a SavedModel and checks the files it lists.

    Returns:
      The card, or None where there is none: other tools write none.

    Raises:
      InputError: it is not JSON, or a file is missing or not as it was written.
    """
    path = os.path.join(directory, FILE_NAME)
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            card = json.loads(file.read())
        files = dict(card["files"])
    except (
        tf.errors.OpError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:
        raise InputError(
            f"{path}: expected a model card as JSON, found: {error}"
        ) from error
    for name, expected in files.items():
        if name not in list_files(directory):
            raise InputError(
                f"{directory}: {name} is missing, which {FILE_NAME} lists: it is "
                "damaged or half copied"
            )
        found = _file_checksum(os.path.join(directory, name))
        if found != expected:
            raise InputError(
                f"{os.path.join(directory, name)}: found SHA-256 {found[:12]}..., "
                f"expected {str(expected)[:12]}... as {FILE_NAME} says: it is damaged "
                "or half copied"
            )
    return card


def list_files(directory: str) -> list[str]:
    """Returns all files below a SavedModel's directory, but not its card, by name."""
    walk = os.walk if is_local(directory) else tf.io.gfile.walk
    paths = [
        os.path.relpath(os.path.join(folder, name), directory)
        for folder, _, names in walk(directory)
        for name in names
    ]
    return sorted(path for path in paths if path != FILE_NAME)


def weights_checksum(weights: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 (hex) of named arrays: names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.shape} {array.dtype.name}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _file_checksum(path: str) -> str:
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
