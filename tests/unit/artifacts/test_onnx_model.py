"""Export to ONNX, read by ONNX Runtime."""

import sys

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from run_factory import create_run, save_data_set

from mnist_dist.artifacts.model_export import export_model
from mnist_dist.data import load_dataset
from mnist_dist.errors import InputError


@keras.saving.register_keras_serializable("test_onnx_model")
class IncompleteBeta(keras.layers.Layer):
    """An operation that ONNX does not have."""

    def call(self, x):
        return tf.math.betainc(tf.ones_like(x), tf.ones_like(x), x)


def create_with_beta(*, image_shape, num_classes):
    head = keras.layers.Dense(num_classes, name="head")
    layers = [keras.layers.Flatten(), IncompleteBeta(), head]
    return keras.Sequential([keras.Input(image_shape), *layers], name="mine")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mlp_computes_in_float32_what_its_weights_say(dtype, tmp_path):
    data_dir = save_data_set(tmp_path / "data")
    arrays = create_run(tmp_path / "run", data_dir=data_dir, steps=(5,), dtype=dtype)[5]
    path = export_model(str(tmp_path / "run"), format="onnx").path
    session = onnxruntime.InferenceSession(path)
    images = load_dataset(data_dir).test.images
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    assert given.shape == ["batch", *images.shape[1:]]
    assert {(o.name, o.type, *o.shape) for o in session.get_outputs()} == {
        ("classes", "tensor(int64)", "batch"),
        ("logits", "tensor(float)", "batch", 4),
        ("probabilities", "tensor(float)", "batch", 4),
    }

    def dense(x, layer):
        kernel, bias = (arrays[f"ema/{layer}/{w}"] for w in ("kernel", "bias"))
        return x @ kernel.astype(np.float64) + bias

    hidden = dense(images.reshape(len(images), -1) / 255, "dense_layer_1")
    logits = dense(np.maximum(hidden, 0), "dense_layer_2")
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    names = ["logits", "probabilities", "classes"]
    for count in (0, 1, len(images)):
        found = session.run(names, {"images": images[:count]})
        expected = [logits, odds / odds.sum(axis=1, keepdims=True)]
        for name, one, other in zip(names, found, expected, strict=False):
            np.testing.assert_allclose(one, other[:count], 1e-4, 1e-3, err_msg=name)
        np.testing.assert_array_equal(found[2], logits[:count].argmax(axis=1))


def test_operation_that_onnx_lacks_is_named(tmp_path, capfd):
    data_dir = save_data_set(tmp_path / "data")
    model = f"{__name__}:create_with_beta"
    create_run(tmp_path / "run", model=model, data_dir=data_dir)
    with pytest.raises(InputError) as caught:
        export_model(str(tmp_path / "run"), format="onnx")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("--format=onnx: the model 'mine' cannot be written so: ")
    assert "Betainc" in line
    assert not list((tmp_path / "run" / "export").iterdir())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("missing", ["tf2onnx", "onnxruntime"])
def test_missing_packages_are_named_with_the_cure(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    expected = rf"^--format=onnx: .*{missing}, .*pip install 'mnist-dist\[onnx\]'$"
    with pytest.raises(InputError, match=expected):
        export_model(str(tmp_path / "no run"), format="onnx")
