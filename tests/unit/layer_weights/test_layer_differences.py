"""Differences of weights, against NumPy."""

import numpy as np
import pytest

from mnist_dist.layer_weights.differences import diff_layers
from mnist_dist.layer_weights.weight_sources import Weights


def test_differences_are_those_numpy_finds():
    a = {"x/k": np.array([3, 4], np.float32), "y/k": np.zeros(2, np.float32)}
    b = {"x/k": np.array([3, 4.5], np.float32), "y/k": np.zeros(3, np.float32)}
    x, y, z = diff_layers(
        Weights("A", a, {}), Weights("B", b | {"z/k": np.ones(1)}, {})
    )
    assert (x.num_values, x.num_different, x.max_abs, x.norm) == (2, 1, 0.5, 0.5)
    assert x.relative == pytest.approx(0.1)
    assert "found float32 [3], expected float32 [2]" in y.note
    assert z.note == "only in B"
