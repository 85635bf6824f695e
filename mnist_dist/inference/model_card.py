"""What an exported model is, whence it came, and its files' sums, in a JSON file.

The card of a SavedModel lies in it, `model_card.json`; that of a file beside it, as
`model-100.keras.json`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mnist_dist
from mnist_dist.device.train_state import TrainState, weight_path
from mnist_dist.errors import InputError
from mnist_dist.files.local import check_regular, check_regular_below, is_local
from mnist_dist.run.config import RunConfig

FILE_NAME = "model_card.json"

# Raise it when what is exported of the same weights changes.
EXPORT_FORMAT = 2

# Of what is read in a card; anything may be null, as for what is not known.
_TYPES = {"step": int, "moving_average": bool, "data": dict, "settings": dict}
_DATA_TYPES = {
    "data_dir": str,
    "sha256": str,
    "validation_examples": int,
    "class_names": list,
    "edge_shade": float,
    "inverse_share": float,
}
_SETTINGS_TYPES = {"seed": int, "validation_split": str}


def identify_model(state: TrainState, *, config: RunConfig) -> dict[str, Any]:
    """Returns the part of a card that tells one export from another."""
    return {
        "export_format": EXPORT_FORMAT,
        "model": state.model.name,
        "dtype": state.model.compute_dtype,
        "image_shape": list(config.image_shape),
        "num_classes": config.num_classes,
        "step": int(state.step.numpy()),
        "weights_sha256": _weights_checksum(state),
    }


def describe_model(
    state: TrainState,
    *,
    config: RunConfig,
    uses_ema: bool,
    evaluation: Mapping[str, Any] | None,
    evaluation_checksum: str | None = None,
) -> dict[str, Any]:
    """Returns the part of a card that tells whence a model came.

    Args:
      state: what was trained.
      config: of the run.
      uses_ema: whether the inference weights are a moving average.
      evaluation: what it gets right; None if that is not known.
      evaluation_checksum: of the data set that it was evaluated on; None: the run's.
    """
    resolved = config.contents.get("resolved", {})
    if evaluation is not None:
        checksum = evaluation_checksum or config.data_checksum
        evaluation = {**evaluation, "data_sha256": checksum}
    return {
        "moving_average": uses_ema,
        "num_parameters": sum(int(np.prod(p.shape)) for p in state.parameters),
        "evaluation": evaluation,
        "data": {
            "source": resolved.get("data"),
            "class_names": resolved.get("class_names"),
            "edge_shade": resolved.get("edge_shade"),
            "inverse_share": resolved.get("inverse_share"),
            "data_dir": config.data_dir,
            "sha256": config.data_checksum,
            "validation_examples": config.validation_examples,
        },
        "settings": config.contents.get("flags"),
        "trained_with": config.contents.get("versions"),
        "exported_with": {
            "mnist_dist": mnist_dist.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
    }


def card_path(path: str) -> str:
    """Returns where the card of a SavedModel or of a file lies."""
    return os.path.join(path, FILE_NAME) if tf.io.gfile.isdir(path) else f"{path}.json"


def save_model_card(path: str, card: Mapping[str, Any]) -> None:
    """Writes the card of an export, with the checksums of all its files.

    Args:
      path: of a SavedModel or a file, not yet published, with nothing left to write.
      card: what is to be said.
    """
    directory, names = _list_files(path)
    files = {name: _file_checksum(os.path.join(directory, name)) for name in names}
    with tf.io.gfile.GFile(card_path(path), "w") as file:
        file.write(json.dumps({**card, "files": files}, indent=2) + "\n")


def load_model_card(path: str) -> dict[str, Any] | None:
    """Reads the card of an export and checks the files it lists.

    Args:
      path: of a SavedModel or a file.

    Returns:
      The card, or None where there is none: other tools write none.

    Raises:
      InputError: it is not JSON or says something of a wrong type, or a file is
        missing or not as it was written.
    """
    written = card_path(path)
    if not tf.io.gfile.exists(written):
        return None
    if is_local(path):
        check_regular(written)
        check_regular_below(path)  # nothing, where `path` is a file
    try:
        with tf.io.gfile.GFile(written, "rb") as file:
            card = json.loads(file.read())
        files = dict(card["files"])
        _check_types(card, _TYPES)
        _check_types(card.get("data") or {}, _DATA_TYPES)
        _check_types(card.get("settings") or {}, _SETTINGS_TYPES)
    except (
        tf.errors.OpError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:
        raise InputError(
            f"{written}: expected a model card as JSON, found: {error}"
        ) from error
    directory, names = _list_files(path)
    for name, expected in files.items():
        if name not in names:
            raise InputError(
                f"{path}: {name} is missing, which {os.path.basename(written)} lists: "
                "it is damaged or half copied"
            )
        found = _file_checksum(os.path.join(directory, name))
        if found != expected:
            raise InputError(
                f"{os.path.join(directory, name)}: found SHA-256 {found[:12]}..., "
                f"expected {str(expected)[:12]}... as {os.path.basename(written)} "
                "says: it is damaged or half copied"
            )
    return card


def holds_model(path: str, content: Mapping[str, Any]) -> bool:
    """Whether what lies there is whole and what `identify_model` says."""
    try:
        card = load_model_card(path)
    except InputError:
        return False
    return card is not None and all(card.get(k) == v for k, v in content.items())


def _check_types(said: Mapping[str, Any], types: Mapping[str, type]) -> None:
    for name, expected in types.items():
        value = said.get(name)
        if value is not None and type(value) is not expected:
            raise TypeError(f"{name!r} is {value!r}, not of type {expected.__name__}")


def _list_files(path: str) -> tuple[str, list[str]]:
    """Returns a directory and the export's files in it, without the card, by name."""
    if not tf.io.gfile.isdir(path):
        directory, name = os.path.split(path)
        return directory, [name] if tf.io.gfile.exists(path) else []
    walk = os.walk if is_local(path) else tf.io.gfile.walk
    names = [
        os.path.relpath(os.path.join(folder, name), path)
        for folder, _, names in walk(path)
        for name in names
    ]
    return path, sorted(name for name in names if name != FILE_NAME)


def _weights_checksum(state: TrainState) -> str:
    """SHA-256 (hex) of the inference weights: names, shapes, dtypes and values."""
    weights = {
        weight_path(state.model, k): v.numpy()
        for k, v in zip(state.keras_weights, state.inference_weights(), strict=True)
    }
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
