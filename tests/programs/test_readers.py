"""A trained run gives every test image the same class, whoever reads it."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from small_mnist import small_mnist

from mnist_dist.data import load_dataset

STEPS = 60
# The training program; when it exports, its model has also classified the test images.
LIVE = """
import runpy, sys
import numpy as np
from mnist_dist.training import ending
from mnist_dist.data import load_dataset
from mnist_dist.artifacts.verification import inference_logits
answers, export = sys.argv.pop(1), ending.export_saved_model
data = next(a for a in sys.argv if a.startswith("--data_dir=")).partition("=")[2]
def classify_and_export(state, *args, **kwargs):
    logits = inference_logits(state, load_dataset(data).test.images)
    np.save(answers, logits.argmax(axis=1))
    return export(state, *args, **kwargs)
ending.export_saved_model = classify_and_export
runpy.run_module("mnist_dist.train", run_name="__main__", alter_sys=True)
"""
TENSORFLOW = """
import sys
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
images = tf.constant(np.load(sys.argv[2]))
np.save(sys.argv[3], serve(images=images)["classes"].numpy())
assert not any(name.startswith("mnist_dist") for name in sys.modules)
"""
# Left to itself OpenVINO computes in bfloat16 where the processor can.
OPENVINO = """
import sys
import numpy as np, openvino
model = openvino.Core().compile_model(
    sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
)
np.save(sys.argv[3], model(np.load(sys.argv[2]))["classes"])
assert not any(name.startswith(("mnist_dist", "tensorflow")) for name in sys.modules)
"""


def start_afresh(program, *arguments):
    """In an interpreter of its own, which has none of our code."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def classes_of_evaluate(fork_server, labels, *flags):
    process = fork_server.start("mnist_dist.evaluate", *flags, "--format=json")
    assert process.wait() == 0, process.stderr()
    (report,) = json.loads(process.stdout())["models"]
    classes = labels.astype(np.int64)
    for wrong in report["misclassified"]:
        classes[wrong["index"]] = wrong["predicted"]
    return classes


def build_by_hand(model, folder):
    """The network as plain Keras layers, with the weights of the `.npy` files."""
    convolutions = [
        keras.layers.Conv2D(
            filters, side, 2, "same", activation="relu", name=f"conv_layer_{n}"
        )
        for n, (filters, side) in enumerate([(32, 5), (64, 3), (128, 3)], start=1)
    ]
    layers = {
        "mlp": [
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu", name="dense_layer_1"),
            keras.layers.Dense(10, name="dense_layer_2"),
        ],
        "cnn": [
            *convolutions,
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="dense_layer_1"),
        ],
    }[model]
    network = keras.Sequential([keras.Input([28, 28, 1]), *layers])
    for layer in layers:
        for variable in layer.weights:
            variable.assign(np.load(folder / layer.name / f"{variable.name}.npy"))
    return network


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_all_readers_of_a_run_agree_on_every_test_image(model, fork_server, tmp_path):
    model_dir, export = tmp_path / "run", tmp_path / "run" / "export" / str(STEPS)
    test = load_dataset(small_mnist()).test
    images, labels = test.images, test.labels
    np.save(tmp_path / "images.npy", images)
    flags = [f"--model_dir={model_dir}", f"--model={model}", f"--train_steps={STEPS}"]
    answers = str(tmp_path / "live.npy")
    flags += [f"--data_dir={small_mnist()}", "--global_batch_size=32"]
    flags += ["--noprogress", "--enable_xla=off", "--noaugment"]
    process = fork_server.start("-c", LIVE, answers, *flags)
    assert process.wait() == 0, process.stderr()

    others = {
        name: start_afresh(
            program, export, tmp_path / "images.npy", tmp_path / f"{name}.npy"
        )
        for name, program in (("SavedModel", TENSORFLOW), ("OpenVINO", OPENVINO))
    }
    found = {
        flag: classes_of_evaluate(fork_server, labels, flag)
        for flag in (f"--model_dir={model_dir}", f"--export_dir={export}")
    }
    layers = tmp_path / "layers"
    flags = [f"--from={model_dir}", f"--output={layers}"]
    process = fork_server.start("mnist_dist.weights", "save", *flags)
    assert process.wait() == 0, process.stderr()
    network = build_by_hand(model, layers)
    logits = network.predict(images / np.float32(255), batch_size=1000, verbose=0)
    found[".npy files"] = logits.argmax(axis=1)

    for name, other in others.items():
        _, errors = other.communicate()
        assert other.returncode == 0, errors
        found[name] = np.load(tmp_path / f"{name}.npy")

    live = np.load(tmp_path / "live.npy")
    assert live.shape == (1_000,)
    for name, classes in found.items():
        np.testing.assert_array_equal(classes, live, err_msg=name)
    # So the accuracy is the one that the training measured, as the card says too.
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    evaluated = [r for r in map(json.loads, lines) if r["kind"] == "eval"][-1]
    card = json.loads((export / "model_card.json").read_text())
    assert evaluated["step"] == STEPS
    assert evaluated["accuracy"] == np.mean(live == labels)
    assert card["evaluation"]["num_correct"] == np.sum(live == labels)
