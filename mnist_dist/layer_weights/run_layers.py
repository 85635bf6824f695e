"""Layers from elsewhere in the newest checkpoint of a run that is not going on."""

from typing import NamedTuple

from mnist_dist.inference.trained_model import read_checkpoint
from mnist_dist.layer_weights.layers import list_layers
from mnist_dist.layer_weights.transplant import (
    Fit,
    LayerMap,
    fit_layers,
    replace_weights,
    run_specs,
)
from mnist_dist.layer_weights.weight_sources import Weights
from mnist_dist.run import history
from mnist_dist.run.checkpoints import load_graph
from mnist_dist.run.lock import open_for_writing


class Transplant(NamedTuple):
    """What became of a run that layers were put into.

    Attributes:
      changed: path of its newest checkpoint, which holds them now.
      before: path of a copy of what this checkpoint was, which is no part of the run.
      fit: which layers went where.
    """

    changed: str
    before: str
    fit: Fit


def transplant_layers(
    source: Weights,
    model_dir: str,
    *,
    layer_map: LayerMap = (),
    must_fit: bool = False,
) -> Transplant:
    """Puts layers into the newest checkpoint of a run, each whole or not at all.

    The optimizer's slots of these layers become zero, their moving average the new
    values, and the accuracy of the weights before is withdrawn from the records.

    Args:
      source: as `load_weights` gives it.
      model_dir: directory of the run, which no other process may be writing.
      layer_map: pairs of a layer's name in the source and in the run; these layers
        must fit. When empty, every layer goes to the one of its name.
      must_fit: whether all layers of the source must fit; else what does not is left
        out, as long as something fits.

    Raises:
      InputError: a layer does not exist or fit, or none fits; there is no run, or it
        is being written.
      RunError: something cannot be written.
    """
    if must_fit and not layer_map:
        layer_map = [(name, name) for name in list_layers(source.arrays)]
    history.check_run(model_dir)
    with open_for_writing(model_dir):
        prefix, arrays = read_checkpoint(model_dir, "latest")
        fit = fit_layers(
            source, run_specs(arrays), layer_map=layer_map, target=model_dir
        )
        before, changed = history.replace_latest(
            model_dir,
            arrays,
            replace_weights(arrays, fit.applied),
            graph=load_graph(prefix),
        )
    return Transplant(changed, before, fit)
