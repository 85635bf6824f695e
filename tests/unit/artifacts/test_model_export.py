"""Exports called from Python: what came of it, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf
from run_factory import create_run, save_data_set

from mnist_dist.artifacts.model_export import export_model
from mnist_dist.data import load_dataset
from mnist_dist.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    data_dir = save_data_set(folder / "data")
    create_run(folder / "run", data_dir=data_dir, steps=(1, 5))
    return folder


def test_result_says_what_was_written_and_where(run, capfd):
    model_dir = f"{run}/run"
    latest = export_model(model_dir)
    assert latest.path == f"{model_dir}/export/5"
    assert (latest.step, latest.moving_average, latest.is_new) == (5, True, True)
    assert latest.checkpoint == f"{model_dir}/checkpoints/ckpt-5"
    first = export_model(model_dir, checkpoint="1", use_ema=False)
    assert first.path == f"{model_dir}/export/1"
    assert (first.moving_average, first.served_version) == (False, 5)
    assert not export_model(model_dir).is_new
    file = export_model(model_dir, format="keras", export_dir=f"{run}/files")
    assert (file.path, file.served_version) == (f"{run}/files/model-5.keras", None)
    images = load_dataset(run / "data").test.images
    serve = tf.saved_model.load(latest.path).signatures["serving_default"]
    model = tf.keras.models.load_model(file.path)
    np.testing.assert_allclose(
        serve(images=tf.constant(images))["logits"],
        model.predict(images / 255, verbose=0),
        rtol=1e-4,
        atol=1e-4,
    )
    assert capfd.readouterr().out == ""


def test_what_cannot_be_exported_is_an_input_error(run, tmp_path):
    for arguments, message in (
        ({"model_dir": f"{tmp_path}/none"}, "found no .*config.json"),
        ({"checkpoint": "7"}, "found 7, expected"),
        ({"format": "pickle"}, "--format: found 'pickle', expected saved_model"),
        ({"format": "keras", "version": 1}, "only SavedModels have versions"),
        ({"data_dir": f"{tmp_path}/none"}, "cannot list the data directory"),
    ):
        with pytest.raises(InputError, match=message):
            export_model(**({"model_dir": f"{run}/run"} | arguments))
