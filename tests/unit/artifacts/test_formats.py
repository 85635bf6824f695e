"""Every built-in model goes into every format, and recurrent ones where they can."""

import numpy as np
import pytest
import tensorflow as tf
from run_factory import create_run, save_data_set

from mnist_dist.artifacts import litert, onnx_model
from mnist_dist.artifacts.model_export import FORMATS, export_model
from mnist_dist.data import load_dataset
from mnist_dist.errors import InputError
from mnist_dist.evaluation.model_evaluation import evaluate_model

MODELS = ["mlp", "cnn", "custom_models:create_mixed", "custom_models:create_unrolled"]
RECURRENT = [f"custom_models:create_{name}" for name in ("lstm", "gru", "simple_rnn")]
SEQUENTIAL = [*RECURRENT, "custom_models:create_unrolled"]


def load(path, file_format):
    """Returns a function from images to logits."""
    if file_format == "saved_model":
        serve = tf.saved_model.load(path).signatures["serving_default"]
        return lambda images: serve(images=tf.constant(images))["logits"].numpy()
    if file_format == "tflite":
        return litert.load_model(path)
    if file_format == "onnx":
        return onnx_model.load_model(path)
    model = tf.keras.models.load_model(path, safe_mode=False)
    return lambda images: model.predict_on_batch(images / 255)


@pytest.mark.parametrize("model", MODELS + RECURRENT)
def test_every_format_classifies_as_the_checkpoint_does(model, tmp_path):
    # A recurrent layer's step is a row, and unrolled each is built apart.
    shape = (4, 10, 1) if model in SEQUENTIAL else (12, 10, 1)
    data_dir = save_data_set(tmp_path / "data", shape=shape)
    create_run(tmp_path / "run", model=model, data_dir=data_dir)
    expected = evaluate_model(f"{tmp_path}/run").report.classes
    images = load_dataset(data_dir).test.images
    # What the other recurrent layers differ in is what a SavedModel keeps.
    is_alike = model in RECURRENT[1:]
    for file_format in ["saved_model"] if is_alike else FORMATS:
        choice = {"format": file_format, "export_dir": f"{tmp_path}/export"}
        if file_format == "tflite" and model in RECURRENT:
            with pytest.raises(InputError, match=r"Select ops TensorList.*unroll=True"):
                export_model(f"{tmp_path}/run", **choice)
            continue
        path = export_model(f"{tmp_path}/run", **choice).path
        compute_logits = load(path, file_format)
        for count in (1, len(images)):
            logits = compute_logits(images[:count])
            np.testing.assert_array_equal(logits.argmax(axis=1), expected[:count])
