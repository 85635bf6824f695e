"""Weights that a hand-built Keras model loads."""

import keras
import numpy as np
import pytest
from run_factory import create_run

from mnist_dist.errors import InputError
from mnist_dist.layer_weights.keras_weights import save_keras_weights


def test_hand_built_model_loads_the_average_of_a_run_and_of_its_checkpoint(tmp_path):
    written = create_run(tmp_path / "run", steps=(1, 2))
    output = str(tmp_path / "F.weights.h5")
    # Without the layer that drops, and with names of its own.
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu", name="one"),
            keras.layers.Dense(10),
        ]
    )
    names = ["dense_layer_1/kernel", "dense_layer_1/bias"]
    names += ["dense_layer_2/kernel", "dense_layer_2/bias"]
    for source, choice, step, kind in (
        ("run", {}, 2, "ema"),
        ("run", {"checkpoint": "1", "use_ema": False}, 1, "model"),
        ("run/checkpoints/ckpt-1", {}, 1, "ema"),
    ):
        trained = save_keras_weights(tmp_path / source, output, **choice)
        assert trained.step == step
        model.load_weights(output)
        for name, variable in zip(names, model.weights, strict=True):
            np.testing.assert_array_equal(variable, written[step][f"{kind}/{name}"])


def test_what_holds_no_model_is_refused(tmp_path):
    np.savez(tmp_path / "f.npz", **{"a/b": np.ones(3, np.float32)})
    with pytest.raises(InputError, match=r"found no .*config\.json"):
        save_keras_weights(tmp_path / "f.npz", tmp_path / "F.weights.h5")
