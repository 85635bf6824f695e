"""One layer's weights: out of anything that holds a model, into a layer of one's own.

from mnist_dist.layer_weights.layers import load_layer, set_layer
dense = tf.keras.layers.Dense(128, activation="relu"); dense.build([None, 784])
set_layer(dense, load_layer("runs/mlp", "dense_layer_1"))
"""

from collections.abc import Iterable, Mapping

import keras
import numpy as np

from mnist_dist.errors import InputError
from mnist_dist.files.arrays import Arrays, describe_misfit
from mnist_dist.layer_weights.layer_files import check_layer
from mnist_dist.layer_weights.weight_sources import load_weights


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
      InputError: it is not built, or made of other layers; names, shapes or dtypes
        differ.
    """
    if not layer.built:
        raise InputError(
            f"{layer.name}: found a layer that is not built, expected one that has "
            "weights: layer.build([None, number_of_inputs])"
        )
    variables = {v.path.rpartition("/")[2]: v for v in layer.weights}
    if len(variables) < len(layer.weights):
        raise InputError(
            f"{layer.name}: found layers inside it, expected one of those: their "
            "weights have the same names"
        )
    specs = {
        f"{layer.name}/{name}": (tuple(v.shape), np.dtype(v.dtype))
        for name, v in variables.items()
    }
    reason = describe_misfit({f"{layer.name}/{k}": a for k, a in arrays.items()}, specs)
    if reason:
        raise InputError(reason)
    for name, array in arrays.items():
        variables[name].assign(array)


def layer_of(name: str) -> str:
    """Returns the layer in `<layer>/<weight>`; a nested layer's name has slashes."""
    return name.rpartition("/")[0]


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
