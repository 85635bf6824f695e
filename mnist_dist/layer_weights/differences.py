"""How far the weights of two models are apart, layer by layer."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mnist_dist.files.arrays import describe_misfit, specs_of
from mnist_dist.layer_weights.layers import layer_of
from mnist_dist.layer_weights.weight_sources import Weights


class LayerDifference(NamedTuple):
    """How far a layer's weights in two sources are apart.

    Attributes:
      layer: its name.
      note: empty; or why it cannot be compared.
      num_values: numbers compared.
      num_different: how many are not equal; 0.0 equals -0.0, and NaN equals NaN.
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
        elif reason := describe_misfit(b, specs_of(a)):
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


def are_equal(differences: Sequence[LayerDifference]) -> bool:
    """Whether two sources have the same layers with the same values."""
    return all(d.num_different == 0 and not d.note for d in differences)
