"""One layer's weights: out of anything that holds a model, into a layer of one's own.

from mnist_dist.layer_weights.layers import load_layer, set_layer
dense = tf.keras.layers.Dense(128, activation="relu"); dense.build([None, 784])
set_layer(dense, load_layer("runs/mlp", "dense_layer_1"))
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays, describe_misfit
from mnist_dist.layer_weights.layer_files import check_layer
from mnist_dist.layer_weights.weight_sources import Weights, load_weights


def load_layer(
    path: str,
    layer: str,
    *,
    checkpoint: str | None = None,
    use_ema: bool | None = None,
) -> Arrays:
    """Reads one layer's weights, by name (`kernel`, `bias`), as `load_weights` does.

    Of a layer that is made of layers it reads all that is below it, by paths such as
    `lstm_cell/kernel`.

    Raises:
      InputError: also if there is no such layer; the message lists those there are.
    """
    weights = load_weights(path, checkpoint=checkpoint, use_ema=use_ema)
    arrays = select_layers(weights.arrays, [layer], where=weights.source)
    return {name.removeprefix(f"{layer}/"): array for name, array in arrays.items()}


def set_layer(layer: keras.Layer, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets all weights of a layer that is built; bit for bit, or not at all.

    Args:
      layer: any Keras layer, of a model or by itself.
      arrays: by the names of the layer's own weights, as `load_layer` gives them.

    Raises:
      InputError: it is not built; or names, shapes or dtypes differ.
    """
    if not layer.built:
        raise InputError(
            f"{layer.name}: found a layer that is not built, expected one that has "
            "weights: layer.build([None, number_of_inputs])"
        )
    variables = _by_name(layer, nested=any("/" in name for name in arrays))
    specs = {
        f"{layer.name}/{name}": (tuple(v.shape), np.dtype(v.dtype))
        for name, v in variables.items()
    }
    reason = describe_misfit({f"{layer.name}/{k}": a for k, a in arrays.items()}, specs)
    if reason:
        raise InputError(reason)
    for name, array in arrays.items():
        variables[name].assign(array)


class WeightSummary(NamedTuple):
    """One weight of a layer.

    Attributes:
      layer: its name.
      weight: its own name in the layer.
      shape: of the array.
      dtype: of the array.
      norm: Euclidean norm of its values.
      key: its name within the source.
    """

    layer: str
    weight: str
    shape: list[int]
    dtype: str
    norm: float
    key: str


def summarize_weights(
    weights: Weights, layers: Iterable[str] = ()
) -> list[WeightSummary]:
    """Returns a summary of each weight of these layers, or of all.

    Raises:
      InputError: there is no such layer.
    """
    arrays = weights.arrays
    if layers:
        arrays = select_layers(arrays, layers, where=weights.source)
    return [
        WeightSummary(
            layer=layer_of(name),
            weight=name.rpartition("/")[2],
            shape=list(array.shape),
            dtype=str(array.dtype),
            norm=float(np.linalg.norm(array.astype(np.float64).ravel())),
            key=weights.keys[name],
        )
        for name, array in arrays.items()
    ]


def layer_of(name: str) -> str:
    """Returns the layer in `<layer>/<weight>`; a nested layer's name has slashes."""
    return name.rpartition("/")[0]


def is_in_layer(name: str, layer: str) -> bool:
    """Whether a weight is the layer's own, or of a layer inside it."""
    return name.startswith(f"{layer}/")


def list_layers(names: Iterable[str]) -> list[str]:
    """Returns the layers that these weights are of, each once, without those inside."""
    layers = list(dict.fromkeys(map(layer_of, names)))
    return [one for one in layers if not any(is_in_layer(one, x) for x in layers)]


def select_layers(arrays: Arrays, layers: Iterable[str], *, where: str) -> Arrays:
    """Returns the arrays of some layers, and of the layers inside them.

    Args:
      arrays: by `<layer>/<weight>`.
      layers: their names; that of a layer made of layers means all inside it.
      where: name of the source for errors.

    Raises:
      InputError: there is no such layer; the message lists those there are.
    """
    wanted = [check_layer(layer, where=where) for layer in layers]
    for layer in wanted:
        if not any(is_in_layer(name, layer) for name in arrays):
            raise InputError(
                f"{where}: found no layer {layer!r}, expected one of: "
                f"{', '.join(sorted(set(map(layer_of, arrays))))}"
            )
    return {
        name: array
        for name, array in arrays.items()
        if any(is_in_layer(name, layer) for layer in wanted)
    }


def _by_name(layer: keras.Layer, *, nested: bool) -> dict[str, keras.Variable]:
    """Returns a layer's weights by their last name, or by their path in the layer."""
    if nested:
        return {v.path.removeprefix(f"{layer.path}/"): v for v in layer.weights}
    variables = {v.path.rpartition("/")[2]: v for v in layer.weights}
    if len(variables) < len(layer.weights):
        raise InputError(
            f"{layer.name}: found a layer made of layers, expected weights by their "
            "paths in it, as load_layer gives them"
        )
    return variables
