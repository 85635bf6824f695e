"""Layers of one model in another: what fits, and what a run makes of it."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from mnist_dist.device.train_state import weight_path
from mnist_dist.errors import InputError
from mnist_dist.files.arrays import (
    Arrays,
    Specs,
    describe_misfit,
    describe_nonfinite,
    describe_spec,
    specs_of,
)
from mnist_dist.layer_weights.layer_files import check_layer
from mnist_dist.layer_weights.layers import (
    is_in_layer,
    layer_of,
    list_layers,
    select_layers,
)
from mnist_dist.layer_weights.weight_sources import Weights, load_weights

LayerMap = Sequence[tuple[str, str]]  # pairs of a layer's name here and there


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
        of the source fits; or a layer holds values that are not finite, from which no
        step would be. The message names layer, expected and found.
    """
    pairs = layer_map or [(one, one) for one in list_layers(sorted(weights.arrays))]
    applied: Arrays = {}
    taken: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for source, layer in pairs:
        arrays = _renamed(weights, source, layer)
        check_layer(layer, where=target)
        if layer in taken:
            raise InputError(f"{target}: found two layers for {layer!r}, expected one")
        own = {name: spec for name, spec in specs.items() if is_in_layer(name, layer)}
        if own:
            reason = describe_misfit(arrays, own)
        else:
            known = sorted({layer_of(name) for name in specs})
            reason = f"{target} has no layer {layer!r}, only {', '.join(known)}"
        if bad := describe_nonfinite(arrays):
            raise InputError(f"{weights.source}: layer {source!r}: {bad}")
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
                f"{name.removeprefix(f'{layer}/')} {describe_spec(a.shape, a.dtype)}"
                for name, a in fit.applied.items()
                if is_in_layer(name, layer)
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
    renamed: Arrays = {}
    for source, layer in layer_map:
        check_layer(layer, where="new name")
        arrays = _renamed(weights, source, layer)
        if not renamed.keys().isdisjoint(arrays):
            raise InputError(f"found two layers for {layer!r}, expected one")
        renamed |= arrays
    return renamed


def _renamed(weights: Weights, source: str, layer: str) -> Arrays:
    """Returns what is in the layer `source`, as if the layer's name were `layer`."""
    arrays = select_layers(weights.arrays, [source], where=weights.source)
    return {f"{layer}/{n.removeprefix(f'{source}/')}": a for n, a in arrays.items()}


def run_specs(checkpoint: Arrays) -> Specs:
    """Returns shape and dtype of the weights in a run's checkpoint."""
    return {
        name.removeprefix("model/"): spec
        for name, spec in specs_of(checkpoint).items()
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


def load_initial(path: str, model: keras.Model) -> Fit:
    """Reads what a new run of `model` starts from, whatever of it fits.

    From a run it is the moving average of the weights where it kept one, as for all
    that reads a run.

    Raises:
      InputError: as `load_weights` and `fit_layers`.
    """
    try:
        weights = load_weights(path)
        specs = {
            weight_path(model, v): (tuple(v.shape), np.dtype(v.dtype))
            for v in model.weights
        }
        return fit_layers(weights, specs, target=model.name)
    except InputError as error:
        raise InputError(f"--init_from: {error}") from error


def initial_arrays(fit: Fit) -> Arrays:
    """Returns what a new run starts from, for `TrainState.from_arrays`."""
    return {
        f"{kind}/{name}": array
        for kind in ("model", "ema")
        for name, array in fit.applied.items()
    }


def describe_fit(fit: Fit) -> str:
    """Returns a line for each layer of the source: what became of it, and why."""
    return "\n".join(
        f"init_from  {row['layer']} {row['result']} {row['note']}"
        for row in report_fit(fit)
    )
