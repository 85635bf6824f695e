"""Layers put into a run from Python: the newest checkpoint holds them, a copy is kept."""

import numpy as np
import pytest
from run_factory import create_run

from mnist_dist.errors import InputError
from mnist_dist.layer_weights.run_layers import transplant_layers
from mnist_dist.layer_weights.weight_sources import Weights, load_weights
from mnist_dist.run.checkpoints import load_arrays
from mnist_dist.run.lock import open_for_writing


@pytest.fixture
def target(tmp_path):
    create_run(tmp_path / "run", steps=(1,))
    return str(tmp_path / "run")


def layers(**changed):
    arrays = {
        "dense_layer_1/kernel": np.full((784, 128), 2, np.float32),
        "dense_layer_1/bias": np.full(128, 3, np.float32),
        "dense_layer_2/kernel": np.full((9, 9), 4, np.float32),
    }
    return Weights("S", arrays | changed, {})


def test_what_fits_goes_in_and_the_rest_stays(target):
    before = load_arrays(f"{target}/checkpoints/ckpt-1")
    done = transplant_layers(layers(), target)
    assert done.fit.taken == {"dense_layer_1": "dense_layer_1"}
    after = load_weights(target).arrays
    np.testing.assert_array_equal(after["dense_layer_1/bias"], np.full(128, 3.0))
    np.testing.assert_array_equal(
        after["dense_layer_2/bias"], before["ema/dense_layer_2/bias"]
    )
    kept = load_arrays(done.before)
    for name, array in before.items():
        np.testing.assert_array_equal(kept[name], array)


def test_all_or_nothing_where_all_must_fit_or_the_run_is_written(target):
    before = load_arrays(f"{target}/checkpoints/ckpt-1")
    with pytest.raises(InputError, match=r"layer 'dense_layer_2': .*found float32"):
        transplant_layers(layers(), target, must_fit=True)
    with (
        open_for_writing(target),
        pytest.raises(InputError, match="is being written by process"),
    ):
        transplant_layers(layers(), target)
    after = load_arrays(f"{target}/checkpoints/ckpt-1")
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
