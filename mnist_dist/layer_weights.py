"""The weights of single layers: out of anything that holds a model, into another.

Weights are arrays named `<layer>/<weight>`, as in `dense_layer_1/kernel`. A layer of a
run, set on a layer of one's own:

    from mnist_dist.layer_weights import load_layer, set_layer
    dense = tf.keras.layers.Dense(128, activation="relu"); dense.build([None, 784])
    set_layer(dense, load_layer("runs/mlp", "dense_layer_1"))
"""

import concurrent.futures
import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from mnist_dist import checkpoints
from mnist_dist.checkpoints import Arrays, Specs
from mnist_dist.data.reading import max_unpacked_bytes, open_file, quoted
from mnist_dist.errors import InputError
from mnist_dist.layer_files import (
    MAX_WEIGHTS_RATIO,
    check_layer,
    check_name,
    load_folder,
    load_npz,
)
from mnist_dist.run_directory import checkpoint_dirs
from mnist_dist.saved_model import list_versions
from mnist_dist.train_state import weight_path
from mnist_dist.trained_model import read_checkpoint

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
LayerMap = Sequence[tuple[str, str]]  # pairs of a layer's name here and there


class Weights(NamedTuple):
    """What a source holds.

    Attributes:
      source: path of what was read.
      arrays: by `<layer>/<weight>`.
      keys: the name of each array within the source.
    """

    source: str
    arrays: Arrays
    keys: dict[str, str]


class Fit(NamedTuple):
    """Which layers of a source go into a target.

    Attributes:
      applied: arrays by the target's names.
      taken: for each layer of the target, the source's layer that it takes.
      skipped: for each layer of the source that fits nowhere, the reason.
    """

    applied: Arrays
    taken: dict[str, str]
    skipped: dict[str, str]


class LayerDifference(NamedTuple):
    """How far a layer's weights in two sources are apart.

    Attributes:
      layer: its name.
      note: empty; or why it cannot be compared.
      num_values: numbers compared.
      num_different: how many are not equal bit for bit.
      max_abs: the largest difference.
      norm: Euclidean norm of the difference.
      relative: that, divided by the norm of the first source's weights.
    """

    layer: str
    note: str = ""
    num_values: int = 0
    num_different: int = 0
    max_abs: float = math.nan
    norm: float = math.nan
    relative: float = math.nan


def layer_of(name: str) -> str:
    """Returns the layer in `<layer>/<weight>`; a nested layer's name has slashes."""
    return name.rpartition("/")[0]


def load_weights(
    path: str, *, checkpoint: str = "latest", use_ema: bool | None = None
) -> Weights:
    """Reads the weights of every layer from whatever holds them.

    Args:
      path: a run's directory, a checkpoint (`RUN/checkpoints/ckpt-100`), a SavedModel
        or a directory of its versions, an `.npz` file, a folder of `.npy` files, or
        a `.keras` file (which Keras reads, in safe mode).
      checkpoint: of a run: `latest` (the newest that is whole), `best`, or a step.
      use_ema: of a run or checkpoint: take the moving average of the weights. None
        takes it where there is one, as evaluation and export do.

    Raises:
      InputError: it cannot be read, is damaged, or holds no weights of layers.
    """
    if os.path.isdir(path):
        if any(map(os.path.isdir, checkpoint_dirs(path))):
            prefix, arrays = read_checkpoint(path, checkpoint)
            found = _from_checkpoint(prefix, arrays, use_ema=use_ema)
        elif versions := _versions(path):
            found = _load_saved_model(versions[0])
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
    elif os.path.isfile(f"{path.removesuffix('.index')}.index"):
        found = _load_checkpoint(path.removesuffix(".index"), use_ema=use_ema)
    else:
        raise InputError(
            f"{quoted(path)}: found {'another file' if os.path.exists(path) else 'nothing'}, "
            "expected a run, a checkpoint, a SavedModel, a .keras or .npz file, or a "
            "folder of <layer>/<weight>.npy files"
        )
    if not found.arrays:
        raise InputError(
            f"{quoted(path)}: found no weights, expected <layer>/<weight> in a run, a "
            "checkpoint, a SavedModel, a .keras or .npz file, or a folder of .npy files"
        )
    return found._replace(arrays=dict(sorted(found.arrays.items())))


def load_layer(
    path: str,
    layer: str,
    *,
    checkpoint: str = "latest",
    use_ema: bool | None = None,
) -> Arrays:
    """Reads one layer's weights, by name (`kernel`, `bias`), as `load_weights` does.

    Raises:
      InputError: also if there is no such layer; the message lists those there are.
    """
    weights = load_weights(path, checkpoint=checkpoint, use_ema=use_ema)
    arrays = select_layers(weights.arrays, [layer], where=weights.source)
    return {name.rpartition("/")[2]: array for name, array in arrays.items()}


def set_layer(layer: keras.Layer, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets all weights of a layer that is built; bit for bit, or not at all.

    Args:
      layer: any Keras layer, of a model or by itself.
      arrays: by the names of the layer's own weights, as `load_layer` gives them.

    Raises:
      InputError: it is not built; names, shapes or dtypes differ.
    """
    variables = {v.path.rpartition("/")[2]: v for v in layer.weights}
    if not layer.built:
        raise InputError(
            f"{layer.name}: found a layer that is not built, expected one that has "
            "weights: layer.build([None, number_of_inputs])"
        )
    specs = {f"{layer.name}/{k}": _spec(v) for k, v in variables.items()}
    reason = _misfit({f"{layer.name}/{k}": a for k, a in arrays.items()}, specs)
    if reason:
        raise InputError(reason)
    for name, array in arrays.items():
        variables[name].assign(array)


def set_model(model: keras.Model, fit: Fit) -> None:
    """Sets the weights of a plain Keras model that `fit_layers` chose for it."""
    for variable in model.weights:
        if (name := weight_path(model, variable)) in fit.applied:
            variable.assign(fit.applied[name])


def model_specs(model: keras.Model) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and dtype of a Keras model's weights, by `<layer>/<weight>`."""
    return {weight_path(model, v): _spec(v) for v in model.weights}


def select_layers(arrays: Arrays, layers: Iterable[str], *, where: str) -> Arrays:
    """Returns the arrays of some layers; `where` is the source's name for errors.

    Raises:
      InputError: there is no such layer; the message lists those there are.
    """
    known = {layer_of(name) for name in arrays}
    wanted = [check_layer(layer, where=where) for layer in layers]
    if unknown := [layer for layer in wanted if layer not in known]:
        raise InputError(
            f"{where}: found no layer {unknown[0]!r}, expected one of: "
            f"{', '.join(sorted(known))}"
        )
    return {name: a for name, a in arrays.items() if layer_of(name) in set(wanted)}


def fit_layers(
    weights: Weights, specs: Specs, *, layer_map: LayerMap = (), target: str
) -> Fit:
    """Chooses which layers of a source a target takes, each whole or not at all.

    Args:
      weights: the source.
      specs: shape and dtype of the target's weights, by `<layer>/<weight>`.
      layer_map: what goes where; these layers must fit. When empty, every layer goes
        to the one of its name, and one that fits nowhere is skipped.
      target: the target's name, for errors.

    Raises:
      InputError: a layer of `layer_map` does not exist or does not fit; or no layer
        of the source fits. The message names layer, expected and found.
    """
    known = {layer_of(name) for name in specs}
    pairs = layer_map or [(s, s) for s in sorted({layer_of(n) for n in weights.arrays})]
    applied: Arrays = {}
    taken: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for source, layer in pairs:
        arrays = {
            f"{layer}/{name.rpartition('/')[2]}": array
            for name, array in select_layers(
                weights.arrays, [source], where=weights.source
            ).items()
        }
        check_layer(layer, where=target)
        if layer in taken:
            raise InputError(f"{target}: found two layers for {layer!r}, expected one")
        if layer not in known:
            reason = f"{target} has no layer {layer!r}, only {', '.join(sorted(known))}"
        else:
            own = {name: s for name, s in specs.items() if layer_of(name) == layer}
            reason = _misfit(arrays, own)
        if reason and layer_map:
            raise InputError(f"{weights.source}: layer {source!r}: {reason}")
        if reason:
            skipped[source] = reason
        else:
            taken[layer] = source
            applied |= arrays
    if not applied:
        reasons = "; ".join(f"{layer}: {why}" for layer, why in skipped.items())
        raise InputError(f"{weights.source}: no layer fits: {reasons}")
    return Fit(applied, taken, skipped)


def report_fit(fit: Fit) -> list[dict[str, str]]:
    """Returns a row for each layer of the source: what became of it, and why."""
    rows = [
        {
            "layer": source,
            "result": "applied",
            "note": f"as {layer}: "
            + ", ".join(
                f"{name.rpartition('/')[2]} {_describe(a.shape, a.dtype)}"
                for name, a in fit.applied.items()
                if layer_of(name) == layer
            ),
        }
        for layer, source in fit.taken.items()
    ]
    return rows + [
        {"layer": layer, "result": "skipped", "note": reason}
        for layer, reason in fit.skipped.items()
    ]


def rename_layers(weights: Weights, layer_map: LayerMap) -> Arrays:
    """Returns the mapped layers under their new names.

    Raises:
      InputError: there is no such layer, or two have one new name.
    """
    arrays = {}
    for source, layer in layer_map:
        check_layer(layer, where="--map")
        chosen = select_layers(weights.arrays, [source], where=weights.source)
        for name, array in chosen.items():
            renamed = f"{layer}/{name.rpartition('/')[2]}"
            if renamed in arrays:
                raise InputError(f"--map: found two layers for {layer!r}, expected one")
            arrays[renamed] = array
    return arrays


def run_specs(checkpoint: Arrays) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and dtype of the weights in a run's checkpoint."""
    return {
        name.removeprefix("model/"): (array.shape, array.dtype)
        for name, array in checkpoint.items()
        if name.startswith("model/")
    }


def replace_weights(checkpoint: Arrays, applied: Arrays) -> Arrays:
    """Returns a run's checkpoint with some weights replaced.

    Their moving average becomes the same values, and the optimizer forgets what it
    knew of them: its slots become zero, as at the start of a run.
    """
    changed = dict(checkpoint)
    for name, array in checkpoint.items():
        kind, _, path = name.partition("/")
        if kind in ("model", "ema") and path in applied:
            changed[name] = applied[path]
        elif kind == "optimizer" and path.partition("/")[2] in applied:
            changed[name] = np.zeros_like(array)
    return changed


def initial_arrays(fit: Fit) -> Arrays:
    """Returns what a new run starts from, for `TrainState.from_arrays`."""
    return {
        f"{kind}/{name}": array
        for kind in ("model", "ema")
        for name, array in fit.applied.items()
    }


def load_initial(path: str, model: keras.Model) -> Fit:
    """Reads what a new run of `model` starts from, whatever of it fits.

    From a checkpoint it is the weights that were trained, not their average.

    Raises:
      InputError: as `load_weights` and `fit_layers`.
    """
    try:
        weights = load_weights(path, use_ema=False)
        return fit_layers(weights, model_specs(model), target=model.name)
    except InputError as error:
        raise InputError(f"--init_from: {error}") from error


def describe_fit(fit: Fit) -> str:
    """Returns a line for each layer of the source: what became of it, and why."""
    return "\n".join(
        f"init_from  {row['layer']} {row['result']} {row['note']}"
        for row in report_fit(fit)
    )


def freeze_layers(model: keras.Model, layers: Sequence[str]) -> None:
    """Takes layers, and the layers inside them, out of training: `layer.trainable`.

    Args:
      model: before its `TrainState` is built.
      layers: by name; a nested one as its weights are named, `outer/inner`.

    Raises:
      InputError: the model has no such layer with weights, or none is left to train.
    """
    known: dict[str, list[keras.Layer]] = {}
    for layer in model._flatten_layers(include_self=False):
        if layer.weights:
            path = (layer.path or layer.name).removeprefix(f"{model.name}/")
            known.setdefault(path, []).append(layer)
    for name in layers:
        if name not in known:
            raise InputError(
                f"--freeze: found {name!r}, expected layers of {model.name!r}: "
                f"{', '.join(sorted(known))}"
            )
        for layer in known[name]:
            layer.trainable = False
    if layers and not model.trainable_variables:
        raise InputError(
            f"--freeze: found all layers of {model.name!r}, expected one left to train"
        )


def diff_layers(first: Weights, second: Weights) -> list[LayerDifference]:
    """Compares two sources layer by layer, in the order of the layers' names."""
    rows = []
    names = first.arrays.keys() | second.arrays.keys()
    for layer in sorted({layer_of(name) for name in names}):
        a, b = (
            {n: v for n, v in weights.arrays.items() if layer_of(n) == layer}
            for weights in (first, second)
        )
        if not a or not b:
            rows.append(
                LayerDifference(layer, f"only in {(second, first)[not b].source}")
            )
        elif reason := _misfit(b, {n: (v.shape, v.dtype) for n, v in a.items()}):
            rows.append(LayerDifference(layer, reason))
        else:
            ours, theirs = (np.concatenate([x[n].ravel() for n in a]) for x in (a, b))
            gap = ours.astype(np.float64) - theirs
            norm, base = np.linalg.norm(gap), np.linalg.norm(ours.astype(np.float64))
            rows.append(
                LayerDifference(
                    layer,
                    num_values=ours.size,
                    num_different=int(
                        np.count_nonzero(
                            (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))
                        )
                    ),
                    max_abs=float(np.max(np.abs(gap), initial=0)),
                    norm=float(norm),
                    relative=float(norm / base) if base else float(norm and math.inf),
                )
            )
    return rows


def _misfit(arrays: Arrays, specs: Specs) -> str:
    """Says how a layer's arrays differ from what is expected; empty if they do not."""
    reasons = [
        f"{name}: found nothing, expected {_describe(*specs[name])}"
        for name in sorted(specs.keys() - arrays.keys())
    ]
    reasons += [
        f"{name}: found {_describe(arrays[name].shape, arrays[name].dtype)}, "
        f"expected {_describe(*specs[name]) if name in specs else 'no such weight'}"
        for name in sorted(arrays)
        if (arrays[name].shape, arrays[name].dtype) != specs.get(name)
    ]
    return "; ".join(reasons)


def _describe(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{dtype} {list(shape)}"


def _spec(variable: keras.Variable) -> tuple[tuple[int, ...], np.dtype]:
    return tuple(variable.shape), np.dtype(variable.dtype)


def _versions(path: str) -> list[str]:
    """Paths of the SavedModels in a directory, or that it is; the newest first."""
    folders = [path] + [os.path.join(path, str(v)) for v in list_versions(path)]
    return [f for f in folders if os.path.isfile(os.path.join(f, "saved_model.pb"))]


def _load_checkpoint(prefix: str, *, use_ema: bool | None) -> Weights:
    return _from_checkpoint(prefix, _read_variables(prefix), use_ema=use_ema)


def _from_checkpoint(
    prefix: str, arrays: Arrays, *, use_ema: bool | None = None
) -> Weights:
    if "step" not in arrays:
        return _by_variable_names(prefix, arrays)
    has_ema = any(name.startswith("ema/") for name in arrays)
    if use_ema and not has_ema:
        raise InputError(
            f"--use_ema: {prefix} holds no moving average: the run was trained with "
            "--ema_decay=0"
        )
    kind = "ema/" if has_ema and use_ema is not False else "model/"
    return _under(prefix, arrays, kind)


def _load_saved_model(path: str) -> Weights:
    prefix = os.path.join(path, "variables", "variables")
    if not os.path.isfile(f"{prefix}.index"):
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
        {name: f"{key}{checkpoints.SUFFIX}" for name, key in names.items()},
    )


def _by_variable_names(prefix: str, arrays: Arrays) -> Weights:
    """Names what Keras or another program wrote as its variables were named."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        tf.train.load_checkpoint(prefix).get_tensor(_GRAPH)
    )
    found = Weights(prefix, {}, {})
    for node in graph.nodes:
        for attribute in node.attributes:
            name, key = attribute.full_name, attribute.checkpoint_key
            array = arrays.get(key.removesuffix(checkpoints.SUFFIX))
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
    try:
        return checkpoints.load_arrays(prefix)
    except checkpoints.DAMAGE as error:
        message = getattr(error, "message", None) or str(error)
        raise InputError(f"{prefix} is damaged: {message.splitlines()[0]}") from error


def _load_keras(path: str) -> Weights:
    try:
        _check_keras_archive(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except InputError:
        raise
    # What Keras, its layers and h5py raise has no common type.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
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
