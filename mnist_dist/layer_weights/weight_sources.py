"""The weights of every layer, read from whatever holds a model.

Weights are arrays named `<layer>/<weight>`, as in `dense_layer_1/kernel`.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from mnist_dist.device.train_state import weight_path
from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays
from mnist_dist.files.durable import describe_error, is_local
from mnist_dist.files.untrusted import max_unpacked_bytes, open_file, quoted
from mnist_dist.inference.trained_model import read_checkpoint, weights_source
from mnist_dist.layer_weights.layer_files import (
    MAX_WEIGHTS_RATIO,
    check_name,
    load_folder,
    load_npz,
)
from mnist_dist.run import checkpoints
from mnist_dist.run.directory import list_version_paths
from mnist_dist.run.object_graph import SUFFIX
from mnist_dist.run.paths import checkpoint_dirs


class Weights(NamedTuple):
    """What a source holds.

    Attributes:
      source: path of what was read.
      arrays: by `<layer>/<weight>`.
      keys: the name of each array within the source.
      choices: which of `checkpoint` and `use_ema` had a say in what was read.
    """

    source: str
    arrays: Arrays
    keys: dict[str, str]
    choices: frozenset[str] = frozenset()


def load_weights(
    path: str | os.PathLike[str],
    *,
    checkpoint: str | None = None,
    use_ema: bool | None = None,
) -> Weights:
    """Reads the weights of every layer from whatever holds them.

    Args:
      path: a run's directory, a checkpoint (`RUN/checkpoints/ckpt-100`), a SavedModel
        or a directory of its versions, an `.npz` file, a folder of `.npy` files, or
        a `.keras` file (which Keras reads, in safe mode).
      checkpoint: of a run: `latest` (the newest that is whole), `best`, or a step; None
        is `latest`.
      use_ema: of a run or checkpoint: take the moving average of the weights. None
        takes it where there is one, as evaluation and export do.

    Raises:
      InputError: it cannot be read, is damaged, or holds no weights of layers; or a
        checkpoint or average is chosen where there is nothing to choose from.
    """
    (found,) = load_several([path], checkpoint=checkpoint, use_ema=use_ema)
    return found


def load_several(
    paths: Sequence[str | os.PathLike[str]],
    *,
    checkpoint: str | None = None,
    use_ema: bool | None = None,
) -> list[Weights]:
    """Reads the weights of several sources, as `load_weights` does.

    Raises:
      InputError: also if a checkpoint or average is chosen, and none of the sources
        has one to choose from.
    """
    loaded = [
        _load(os.fspath(path), checkpoint=checkpoint or "latest", use_ema=use_ema)
        for path in paths
    ]
    for name, is_chosen, kind in (
        ("checkpoint", checkpoint is not None, "a run"),
        ("use_ema", use_ema is not None, "a run or its checkpoint"),
    ):
        if is_chosen and not any(name in weights.choices for weights in loaded):
            sources = " and ".join(weights.source for weights in loaded)
            raise InputError(f"--{name}: found it with {sources}, expected {kind}")
    return loaded


def _load(path: str, *, checkpoint: str, use_ema: bool | None) -> Weights:
    prefix = path.removesuffix(".index")
    # First: in memory (`ram://`) TensorFlow takes what a file's name begins with for a
    # folder.
    if _is_file(f"{prefix}.index"):
        found = _load_checkpoint(prefix, use_ema=use_ema)
    elif _is_folder(path):
        if any(map(_is_folder, checkpoint_dirs(path))):
            prefix, arrays = read_checkpoint(path, checkpoint)
            found = _from_checkpoint(prefix, arrays, use_ema=use_ema)
            found = found._replace(choices=found.choices | {"checkpoint"})
        elif saved_models := _list_saved_models(path):
            found = _load_saved_model(saved_models[0])
        elif steps := checkpoints.list_checkpoints(path):
            prefix = checkpoints.checkpoint_prefix(path, steps[0])
            found = _load_checkpoint(prefix, use_ema=use_ema)
        else:
            arrays = load_folder(path)
            found = Weights(path, arrays, {name: f"{name}.npy" for name in arrays})
    elif path.endswith(".npz"):
        arrays = load_npz(path)
        found = Weights(path, arrays, {name: name for name in arrays})
    elif path.endswith(".keras"):
        found = _load_keras(path)
    else:
        raise InputError(
            f"{quoted(path)}: found {'another file' if _is_file(path) else 'nothing'}, "
            "expected a run, a checkpoint, a SavedModel, a .keras or .npz file, or a "
            "folder of <layer>/<weight>.npy files"
        )
    if not found.arrays:
        raise InputError(
            f"{quoted(path)}: found no weights, expected <layer>/<weight> in a run, a "
            "checkpoint, a SavedModel, a .keras or .npz file, or a folder of .npy files"
        )
    return found._replace(arrays=dict(sorted(found.arrays.items())))


def _is_folder(path: str) -> bool:
    # TensorFlow cannot take every name of a local one.
    return os.path.isdir(path) if is_local(path) else tf.io.gfile.isdir(path)


def _is_file(path: str) -> bool:
    exists = os.path.exists if is_local(path) else tf.io.gfile.exists
    return exists(path) and not _is_folder(path)


def _list_saved_models(path: str) -> list[str]:
    """Paths of the SavedModels in a directory, or that it is; the newest first."""
    folders = [path, *list_version_paths(path)]
    return [f for f in folders if _is_file(os.path.join(f, "saved_model.pb"))]


def _load_checkpoint(prefix: str, *, use_ema: bool | None) -> Weights:
    return _from_checkpoint(prefix, _read_variables(prefix), use_ema=use_ema)


def _from_checkpoint(
    prefix: str, arrays: Arrays, *, use_ema: bool | None = None
) -> Weights:
    if "step" not in arrays:
        return _by_variable_names(prefix, arrays)
    kind = weights_source(arrays, prefix=prefix, use_ema=use_ema)
    return _under(prefix, arrays, kind)._replace(choices=frozenset({"use_ema"}))


def _load_saved_model(path: str) -> Weights:
    prefix = os.path.join(path, "variables", "variables")
    if not _is_file(f"{prefix}.index"):
        raise InputError(
            f"{quoted(path)}: found a SavedModel without variables/variables.index, "
            "expected one with weights"
        )
    arrays = _read_variables(prefix)
    found = _by_variable_names(prefix, arrays)
    # Ours names its variables by where they are, others by what they are.
    return (found if found.arrays else _under(prefix, arrays, "model/"))._replace(
        source=path
    )


def _under(prefix: str, arrays: Arrays, kind: str) -> Weights:
    names = {n.removeprefix(kind): n for n in arrays if n.startswith(kind)}
    for name in names:
        check_name(name, where=prefix)
    return Weights(
        prefix,
        {name: arrays[key] for name, key in names.items()},
        {name: f"{key}{SUFFIX}" for name, key in names.items()},
    )


def _by_variable_names(prefix: str, arrays: Arrays) -> Weights:
    """Names what Keras or another program wrote as its variables were named."""
    found = Weights(prefix, {}, {})
    for node in _read_graph(prefix).nodes:
        for attribute in node.attributes:
            name, key = attribute.full_name, attribute.checkpoint_key
            array = arrays.get(key.removesuffix(SUFFIX))
            if "/" not in name or array is None or array.dtype.kind != "f":
                continue
            check_name(name, where=prefix)
            known = found.arrays.get(name, array)
            if known.tobytes() != array.tobytes():
                raise InputError(f"{prefix}: found two weights named {name!r}")
            found.arrays[name], found.keys[name] = array, key
    # Some models put their own name in front of every layer's.
    first = {name.partition("/")[0] for name in found.arrays}
    if len(first) == 1 and all(name.count("/") > 1 for name in found.arrays):
        return Weights(
            prefix,
            {name.partition("/")[2]: a for name, a in found.arrays.items()},
            {name.partition("/")[2]: key for name, key in found.keys.items()},
        )
    return found


def _read_variables(prefix: str) -> Arrays:
    with _naming_damage(prefix):
        return checkpoints.load_arrays(prefix)


def _read_graph(prefix: str) -> TrackableObjectGraph:
    with _naming_damage(prefix), checkpoints.open_checkpoint(prefix) as reader:
        if reader.has_tensor(checkpoints.OBJECT_GRAPH):
            graph = reader.get_tensor(checkpoints.OBJECT_GRAPH)
            return TrackableObjectGraph.FromString(graph)
    raise InputError(
        f"{prefix}: found a checkpoint without a graph of objects, as TensorFlow 1 "
        "wrote them, expected one by tf.train.Checkpoint"
    )


@contextlib.contextmanager
def _naming_damage(prefix: str) -> Iterator[None]:
    try:
        yield
    except (*checkpoints.DAMAGE, DecodeError) as error:
        raise InputError(f"{prefix} is damaged: {describe_error(error)}") from error


def _load_keras(path: str) -> Weights:
    try:
        _check_keras_archive(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except InputError:
        raise
    # What Keras, its layers and h5py raise has no common type.
    except Exception as error:
        unknown = re.search(r"Could not locate (?:class|function) '(\w+)'", str(error))
        reason = describe_error(error)
        if unknown:
            reason = (
                f"found the class {unknown[1]!r} of one's own, expected one that is "
                "imported and has @keras.saving.register_keras_serializable()"
            )
        raise InputError(f"{quoted(path)}: Keras cannot load it: {reason}") from error
    arrays: Arrays = {}
    for variable in model.weights:
        name = check_name(weight_path(model, variable), where=quoted(path))
        if name in arrays:
            raise InputError(f"{quoted(path)}: found two weights named {name!r}")
        arrays[name] = variable.numpy()
    return Weights(path, arrays, {v: v for v in arrays})


def _check_keras_archive(path: str) -> None:
    """Compares what a model will take with the file's size, before Keras builds it."""
    with open_file(path) as (file, size), zipfile.ZipFile(file) as archive:
        limit = max_unpacked_bytes(size, max_ratio=MAX_WEIGHTS_RATIO)
        if (claimed := sum(m.file_size for m in archive.infolist())) > limit:
            raise InputError(
                f"{quoted(path)}: claims to unpack to {claimed} bytes, expected at most "
                f"{limit} of a file of this size"
            )
        config = json.loads(archive.read("config.json"))
    # Keras remembers variables without values, thread by thread: not in this one.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        needed = thread.submit(_count_bytes, config).result()
    if needed > limit:
        raise InputError(
            f"{quoted(path)}: its layers need {needed} bytes, expected at most {limit} "
            "of a file of this size"
        )


def _count_bytes(config: dict) -> int:
    """Returns the size of the weights of a model, without making them."""
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
        return sum(
            math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in model.weights
        )
