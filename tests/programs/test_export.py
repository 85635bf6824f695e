"""The export program, on a run that was really trained."""

import hashlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import keras
import numpy as np
import openvino
import pytest
import tensorflow as tf
from run_factory import create_run, save_data_set


@pytest.fixture(scope="module")
def trained(fork_server, tmp_path_factory):
    """An MLP of 60 steps, and how many test images it gets right."""
    model_dir = tmp_path_factory.mktemp("runs") / "mlp"
    process = fork_server.start(
        "mnist_dist.train",
        f"--model_dir={model_dir}",
        *("--model=mlp", "--train_steps=60", "--enable_xla=off", "--noprogress"),
    )
    assert process.wait() == 0, process.stderr()
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    evaluated = [r for r in map(json.loads, lines) if r["kind"] == "eval"][-1]
    return model_dir, round(evaluated["accuracy"] * 10_000)


def start_export(fork_server, *flags):
    return fork_server.start("mnist_dist.export", *flags)


def export(fork_server, *flags):
    process = start_export(fork_server, *flags)
    assert process.wait() == 0, process.stderr()
    assert process.stderr() == ""
    return process.stdout()


def read_onnx_with_openvino(path):
    """A reader that neither writes nor verifies the file."""
    # Left to itself OpenVINO computes in bfloat16 where the processor can.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", options)


def test_export_writes_what_train_wrote(trained, fork_server, tmp_path):
    model_dir, _ = trained
    output = export(fork_server, f"--model_dir={model_dir}")
    assert f"{model_dir}/export/60  (it was there, the same model)" in output
    output = export(fork_server, f"--model_dir={model_dir}", f"--export_dir={tmp_path}")
    assert f"{tmp_path}/60\n" in output

    def card(directory):
        with open(f"{directory}/60/model_card.json", encoding="utf-8") as file:
            card = json.load(file)
        # TensorFlow numbers what it traces, so these two differ without a reason.
        return {k: v for k, v in card.items() if k != "files"}

    assert card(tmp_path) == card(f"{model_dir}/export")


def test_saved_model_cli_shows_and_runs_the_signatures(
    trained, fork_server, mnist, tmp_path
):
    model_dir, _ = trained
    path = f"{model_dir}/export/60"
    images = mnist.test.images[:3]
    np.save(tmp_path / "pixels.npy", images)
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    np.save(tmp_path / "png.npy", np.array(encoded, object))

    def run_cli(*arguments):
        arguments = [*arguments, "--dir", path, "--tag_set", "serve"]
        process = fork_server.start(
            "tensorflow.python.tools.saved_model_cli", *arguments
        )
        assert process.wait() == 0, process.stderr()
        return process.stdout()

    expected = tf.saved_model.load(path).signatures["serving_default"](
        images=tf.constant(images)
    )["logits"]
    for name, file in (("serving_default", "pixels"), ("serving_png", "png")):
        shown = run_cli("show", "--signature_def", name)
        for text in ("inputs['images']", "['classes']", "['logits']", "['probabi"):
            assert text in shown
        arguments = ["--inputs", f"images={tmp_path}/{file}.npy"]
        arguments += ["--outdir", str(tmp_path), "--overwrite"]
        run_cli("run", "--signature_def", name, *arguments)
        found = np.load(tmp_path / "logits.npy")
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("file_format", ["keras", "tflite", "onnx"])
def test_one_file_predicts_the_test_set_as_the_saved_model_does(
    file_format, trained, fork_server, mnist, tmp_path
):
    model_dir, num_correct = trained
    flags = [f"--model_dir={model_dir}", f"--export_dir={tmp_path}"]
    flags += [f"--format={file_format}"]
    assert f"{tmp_path}/model-60.{file_format}\n" in export(fork_server, *flags)
    path = f"{tmp_path}/model-60.{file_format}"
    if file_format == "keras":
        model = keras.models.load_model(path)
        found = model.predict(mnist.test.images / 255, batch_size=1000, verbose=0)
    elif file_format == "onnx":
        found = read_onnx_with_openvino(path)(mnist.test.images)["logits"]
    else:
        serve = tf.lite.Interpreter(path).get_signature_runner("serving_default")
        found = serve(images=mnist.test.images)["logits"]
    serve = tf.saved_model.load(f"{model_dir}/export/60").signatures["serving_default"]
    expected = serve(images=tf.constant(mnist.test.images))["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert int((found.argmax(axis=1) == mnist.test.labels).sum()) == num_correct
    card = json.loads((tmp_path / f"model-60.{file_format}.json").read_text())
    assert card["evaluation"]["num_correct"] == num_correct
    assert (card["step"], card["moving_average"]) == (60, True)
    checksum = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert card["files"] == {f"model-60.{file_format}": checksum}
    assert "(it was there, the same model)" in export(fork_server, *flags)
    process = start_export(fork_server, *flags, "--nouse_ema")
    assert process.wait() == 2
    assert "found another model" in process.stderr()
    export(fork_server, *flags, "--nouse_ema", "--overwrite")
    names = [f"model-60.{file_format}", f"model-60.{file_format}.json"]
    assert sorted(os.listdir(tmp_path)) == names
    os.truncate(path, 1000)
    process = start_export(fork_server, *flags, "--nouse_ema")
    assert process.wait() == 2
    assert "found another model" in process.stderr()


def test_killed_export_leaves_no_version_and_the_next_one_clears_up(
    fork_server, tmp_path
):
    data_dir = save_data_set(tmp_path / "data")
    create_run(tmp_path / "run", data_dir=data_dir, steps=(5,))
    directory = tmp_path / "run" / "export"
    process = start_export(fork_server, f"--model_dir={tmp_path}/run")
    process.wait_for(directory)
    while not (left := os.listdir(directory)):
        time.sleep(0.005)
    process.kill(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert left[0].startswith(f".writing-{socket.gethostname()}-{process.pid}-")
    assert os.listdir(directory) == left
    export(fork_server, f"--model_dir={tmp_path}/run")
    assert os.listdir(directory) == ["5"]


def test_missing_data_set_costs_the_accuracy_alone(fork_server, tmp_path):
    data_dir = save_data_set(tmp_path / "data")
    create_run(tmp_path / "run", data_dir=data_dir, steps=(5,))
    os.rename(data_dir, tmp_path / "moved")
    process = start_export(fork_server, f"--model_dir={tmp_path}/run")
    assert process.wait() == 0
    assert "no accuracy on the model card" in process.stderr()
    card = json.loads((tmp_path / "run/export/5/model_card.json").read_text())
    assert card["evaluation"] is None
    moved = f"--data_dir={tmp_path}/moved"
    export(fork_server, f"--model_dir={tmp_path}/run", moved, "--version=6")
    card = json.loads((tmp_path / "run/export/6/model_card.json").read_text())
    assert card["evaluation"]["num_examples"] == 53


def test_data_set_named_for_the_card_may_be_smaller_than_the_run_s(
    fork_server, tmp_path
):
    data_dir = save_data_set(tmp_path / "data")
    create_run(tmp_path / "run", data_dir=data_dir, steps=(5,))
    config_file = tmp_path / "run" / "config.json"
    config = json.loads(config_file.read_text())
    config["settings"]["validation_examples"] = 5000
    config_file.write_text(json.dumps(config))
    export(fork_server, f"--model_dir={tmp_path}/run", f"--data_dir={data_dir}")
    card = json.loads((tmp_path / "run/export/5/model_card.json").read_text())
    assert card["evaluation"]["split"] == "test"
    assert card["evaluation"]["num_examples"] == 53
