"""Layers of one model in another: what fits goes whole, and the rest is accounted for."""

import numpy as np
import pytest

from mnist_dist.errors import InputError
from mnist_dist.layer_weights.transplant import (
    fit_layers,
    rename_layers,
    replace_weights,
)
from mnist_dist.layer_weights.weight_sources import Weights


def test_layers_go_whole_or_not_at_all_and_every_one_is_accounted_for():
    source = {
        "a/kernel": np.ones((2, 2), np.float32),
        "a/bias": np.ones(2, np.float32),
        "b/kernel": np.ones((2, 2), np.float32),
        "b/bias": np.ones(3, np.float32),
        "c/kernel": np.ones(1, np.float32),
    }
    weights = Weights("S", source, {n: n for n in source})
    specs = {
        n: ((2, 2) if "kernel" in n else (2,), np.dtype("f4")) for n in list(source)[:4]
    }
    fit = fit_layers(weights, specs, target="T")
    assert fit.applied.keys() == {"a/kernel", "a/bias"}
    assert "found float32 [3], expected float32 [2]" in fit.skipped["b"]
    assert "T has no layer 'c', only a, b" in fit.skipped["c"]
    assert fit_layers(weights, specs, layer_map=[("a", "b")], target="T").taken == {
        "b": "a"
    }
    for pairs, message in [
        ([("b", "b")], "layer 'b'.*expected float32"),
        ([("a", "z")], "no layer 'z', only a, b"),
        ([("z", "a")], "no layer 'z', expected one of: a, b, c"),
        ([("a", "../a")], "found the layer name"),
        ([("a\0", "a")], "found the layer name"),
        ([("a", "a"), ("a", "a")], "two layers for 'a'"),
    ]:
        with pytest.raises(InputError, match=message):
            fit_layers(weights, specs, layer_map=pairs, target="T")
    with pytest.raises(InputError, match="no layer fits: c: "):
        fit_layers(
            Weights("S", {"c/kernel": source["c/kernel"]}, {}), specs, target="T"
        )


def test_layer_made_of_layers_goes_with_all_that_is_inside():
    source = {
        "rows/cell/kernel": np.ones((2, 2), np.float32),
        "rows/cell/bias": np.ones(2, np.float32),
        "rows2/kernel": np.ones(1, np.float32),
    }
    weights = Weights("S", source, {n: n for n in source})
    renamed = rename_layers(weights, [("rows", "lines")])
    assert renamed.keys() == {"lines/cell/kernel", "lines/cell/bias"}
    specs = {name: (array.shape, array.dtype) for name, array in renamed.items()}
    fit = fit_layers(weights, specs, layer_map=[("rows", "lines")], target="T")
    assert fit.applied.keys() == renamed.keys()
    del specs["lines/cell/bias"]
    with pytest.raises(InputError, match="layer 'rows': lines/cell/bias: found float"):
        fit_layers(weights, specs, layer_map=[("rows", "lines")], target="T")


@pytest.mark.parametrize("layer_map", [[], [("a", "a")]])
def test_layer_that_is_not_finite_goes_nowhere(layer_map):
    source = {
        "a/kernel": np.array([1, np.nan, -np.inf], np.float32),
        "b/kernel": np.ones(3, np.float32),
    }
    specs = {name: ((3,), np.dtype("f4")) for name in source}
    weights = Weights("S", source, {})
    with pytest.raises(
        InputError, match="S: layer 'a': 2 of 3 values of a/kernel are not finite"
    ):
        fit_layers(weights, specs, layer_map=layer_map, target="T")
    fit = fit_layers(weights, specs, layer_map=[("b", "a")], target="T")
    assert fit.applied.keys() == {"a/kernel"}


def test_replaced_weights_reset_slots_and_average_of_their_layer_alone():
    names = [
        "model/a/k",
        "ema/a/k",
        "optimizer/mean/a/k",
        "model/b/k",
        "optimizer/mean/b/k",
        "step",
    ]
    before = {n: np.full(2, 7.0, np.float32) for n in names}
    new = np.array([1, 2], np.float32)
    after = replace_weights(before, {"a/k": new})
    expected = before | {
        "model/a/k": new,
        "ema/a/k": new,
        "optimizer/mean/a/k": 0 * new,
    }
    assert after.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(after[name], array, strict=True)
