"""Evaluation called from Python: one result, whatever holds the model and the data."""

import dataclasses
import random
import threading

import numpy as np
import pytest
import tensorflow as tf
from run_factory import create_run, save_data_set

from mnist_dist.artifacts.model_export import export_model
from mnist_dist.data import load_dataset
from mnist_dist.errors import InputError
from mnist_dist.evaluation.classification_report import format_report
from mnist_dist.evaluation.model_evaluation import evaluate_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the steps 1 and 2 on a small data set, and its weights."""
    folder = tmp_path_factory.mktemp("evaluate")
    data_dir = save_data_set(folder / "data")
    written = create_run(folder / "run", data_dir=data_dir, steps=(1, 2))
    return folder, written


def expected_accuracy(run, images, labels, step=2):
    """By NumPy, with the moving average."""
    weights = {
        name.removeprefix("ema/dense_layer_"): array
        for name, array in run[1][step].items()
        if name.startswith("ema/")
    }
    x = images.reshape(len(images), -1) / 255
    hidden = np.maximum(x @ weights["1/kernel"] + weights["1/bias"], 0)
    logits = hidden @ weights["2/kernel"] + weights["2/bias"]
    return np.mean(logits.argmax(axis=1) == labels)


def test_accuracy_is_numpys_for_a_run_a_data_set_and_arrays(run):
    folder, _ = run
    dataset = load_dataset(folder / "data")
    for part in (dataset.test, dataset.train):
        expected = expected_accuracy(run, part.images, part.labels)
        for data in (None, dataset, (part.images, part.labels)):
            found = evaluate_model(f"{folder}/run", data=data, split=part.name)
            assert found.accuracy == expected
            assert found.report.num_examples == len(part.labels)
            (model,) = found.models
            assert (model.step, model.moving_average) == (2, True)
            assert found.ensemble is None
    first = evaluate_model(f"{folder}/run", checkpoint="1")
    images, labels = dataset.test.images, dataset.test.labels
    assert first.accuracy == expected_accuracy(run, images, labels, step=1)


def test_saved_models_are_evaluated_alone_and_together(run, tmp_path):
    folder, _ = run
    for step in ("1", "2"):
        export_model(f"{folder}/run", checkpoint=step, export_dir=str(tmp_path))
    paths = [f"{tmp_path}/1", f"{tmp_path}/2"]
    alone = [evaluate_model(export_dir=path) for path in paths]
    together = evaluate_model(export_dir=paths)
    for one, model in zip(alone, together.models, strict=True):
        assert model.report.accuracy == one.accuracy
    assert together.accuracy == together.ensemble.accuracy


def test_classes_that_have_names_are_shown_with_them(run):
    folder, _ = run
    names = ("cat", "dog\n", "emu")
    dataset = load_dataset(folder / "data")
    named = dataclasses.replace(dataset, class_names=(*names, "fox"))
    found = evaluate_model(f"{folder}/run", data=named)
    (model,) = found.to_json()["models"]
    assert [row["name"] for row in model["classes"]] == [*names, "fox"]
    lines = format_report(found.report, found.class_names).splitlines()
    assert [line.split()[-1] for line in lines[1:5]] == [
        "cat",
        "'dog\\n'",
        "emu",
        "fox",
    ]
    plain = evaluate_model(f"{folder}/run")
    assert "name" not in plain.to_json()["models"][0]["classes"][0]


def test_nothing_global_changes_and_nothing_is_printed(run, capfd):
    before = random.getstate(), np.random.get_state()[1].tolist()
    random.seed(1)
    tf.random.set_seed(1)
    expected = random.random(), tf.random.uniform([]).numpy()
    random.seed(1)
    tf.random.set_seed(1)
    np.random.seed(1)
    numpy_state = np.random.get_state()[1].tolist()
    evaluate_model(f"{run[0]}/run")
    assert (random.random(), tf.random.uniform([]).numpy()) == expected
    assert np.random.get_state()[1].tolist() == numpy_state
    random.setstate(before[0])
    assert capfd.readouterr().out == ""


def test_any_thread_may_call_it(run):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(evaluate_model(f"{run[0]}/run").accuracy)
    )
    thread.start()
    thread.join()
    assert found == [evaluate_model(f"{run[0]}/run").accuracy]


def test_what_cannot_be_evaluated_is_an_input_error(run, tmp_path):
    folder, _ = run
    for arguments, message in (
        ({}, "found neither, expected one of the two"),
        ({"model_dir": "a", "export_dir": "b"}, "found both"),
        ({"model_dir": f"{tmp_path}/none"}, "found no .*config.json"),
        ({"model_dir": f"{folder}/run", "checkpoint": "7"}, "found 7, expected"),
        ({"model_dir": f"{folder}/run", "split": "all"}, "--split: found all"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_model(**arguments)
