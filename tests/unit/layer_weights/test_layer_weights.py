"""A layer's weights in a layer of one's own, whole or not at all."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnist_dist.errors import InputError
from mnist_dist.layer_weights.layer_files import save_layers, save_npz
from mnist_dist.layer_weights.layers import load_layer, set_layer

KERNEL = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def test_three_lines_set_a_layer_of_ones_own(tmp_path):
    save_npz(
        {f"features/{n}": a for n, a in of_dense().items()}, str(tmp_path / "f.npz")
    )
    dense = tf.keras.layers.Dense(3)
    dense.build([None, 4])
    set_layer(dense, load_layer(str(tmp_path / "f.npz"), "features"))
    np.testing.assert_array_equal(dense.kernel, of_dense()["kernel"])
    np.testing.assert_array_equal(dense.bias, of_dense()["bias"])


def of_dense():
    return {"kernel": KERNEL, "bias": np.arange(3, dtype=np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kernel": np.ones((3, 4), np.float32)},
            r"found float32 \[3, 4\], expected float32 \[4, 3\]",
        ),
        (
            {"bias": np.ones(3, np.float64)},
            r"d/bias: found float64 \[3\], expected float32",
        ),
        ({"gamma": np.ones(3, np.float32)}, "d/gamma: .* expected no such array"),
        ({"bias": None}, r"d/bias: found nothing, expected float32 \[3\]"),
    ],
)
def test_layer_that_does_not_fit_is_left_as_it_was(change, message):
    dense = keras.layers.Dense(3, name="d")
    dense.build([None, 4])
    before = [v.numpy() for v in dense.weights]
    arrays = {n: a for n, a in (of_dense() | change).items() if a is not None}
    with pytest.raises(InputError, match=message):
        set_layer(dense, arrays)
    for old, new in zip(before, dense.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_layer_made_of_layers_is_refused_not_set_in_part():
    layer = keras.layers.Bidirectional(keras.layers.SimpleRNN(2), name="both")
    layer.build([None, 5, 3])
    arrays = {v.name: np.ones(v.shape, np.float32) for v in layer.weights}
    with pytest.raises(InputError, match="both: found a layer made of layers"):
        set_layer(layer, arrays)
    assert not any(np.all(v.numpy() == 1) for v in layer.weights)


def test_layer_made_of_layers_is_read_and_set_with_all_that_is_inside(tmp_path):
    def build():
        lstm = keras.layers.LSTM(2, dropout=0.1, name="lstm")
        layer = keras.layers.Bidirectional(lstm, name="rows")
        layer.build([None, 5, 3])
        return layer

    one, other = build(), build()
    arrays = {v.path: v.numpy() for v in one.weights}
    assert len(arrays) == 6
    path = str(tmp_path / "f.npz")
    save_layers(arrays | {"rows2/kernel": KERNEL}, path)
    found = load_layer(path, "rows")
    assert found.keys() == {n.removeprefix("rows/") for n in arrays}
    set_layer(other, found)
    for ours, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (inner,) = {v.name for v in one.weights if "bias" in v.name}
    inside = load_layer(path, "rows/forward_lstm/lstm_cell")
    np.testing.assert_array_equal(
        inside[inner], arrays["rows/forward_lstm/lstm_cell/bias"]
    )
