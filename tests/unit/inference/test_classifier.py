"""A SavedModel is found, checked and asked; what is wrong with it is one line."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from run_factory import export_untrained

from mnist_dist.errors import InputError
from mnist_dist.inference.classifier import (
    find_saved_model,
    load_classifier,
    select_best,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The SavedModel of an untrained model."""
    return export_untrained(tmp_path_factory.mktemp("export"))


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def load_error(path):
    with pytest.raises(InputError) as error:
        load_classifier(str(path))
    assert str(error.value).startswith(repr(str(path)))
    assert "\n" not in str(error.value)
    return str(error.value)


# Which one.


def test_newest_version_is_the_highest_number(tmp_path):
    for name in ("9", "80", "0100", ".writing-900", "900.old", "²"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "300").mkdir()
    (tmp_path / "400").touch()
    assert find_saved_model(str(tmp_path)) == str(tmp_path / "0100")


def test_a_version_is_itself(exported):
    assert find_saved_model(exported) == exported
    assert find_saved_model(os.path.dirname(exported)) == exported


def test_no_version(tmp_path):
    with pytest.raises(InputError, match=r"found no saved_model.pb and no version"):
        find_saved_model(str(tmp_path))
    with pytest.raises(InputError, match=r"/no': no directory that can be listed"):
        find_saved_model(str(tmp_path / "no"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"/file': no directory"):
        find_saved_model(str(tmp_path / "file"))


# What it answers.


@pytest.mark.parametrize("num_images", [1, 7, 256])
def test_answers_are_the_saved_models_own(exported, mnist, num_images):
    images = mnist.test.images[:num_images]
    classifier = load_classifier(exported)
    assert classifier.image_shape == (28, 28, 1)
    assert classifier.num_classes == 10
    serve = tf.saved_model.load(exported).signatures["serving_default"]
    expected = {name: v.numpy() for name, v in serve(tf.constant(images)).items()}
    probabilities, logits = classifier.classify(images)
    np.testing.assert_array_equal(probabilities, expected["probabilities"])
    np.testing.assert_array_equal(logits, expected["logits"])
    best, _ = select_best(probabilities, logits, 1)
    np.testing.assert_array_equal(best[:, 0], expected["classes"])


def test_best_classes_of_equal_probabilities_are_ordered_by_logits():
    logits = np.array([[0, 200, 199.9, -5], [1, 1, 1, 2]], np.float32)
    probabilities = np.array([[0, 1, 1, 0], [0.2, 0.2, 0.2, 0.4]], np.float32)
    classes, best = select_best(probabilities, logits, 3)
    np.testing.assert_array_equal(classes, [[1, 2, 0], [3, 0, 1]])
    np.testing.assert_array_equal(best, np.float32([[1, 1, 0], [0.4, 0.2, 0.2]]))


# What is wrong with it.


@pytest.mark.parametrize("name", ["lr[0.1]", "back\\slash", "a*b?"])
def test_any_name_of_a_folder_is_no_pattern(name, exported, tmp_path):
    path = export_untrained(tmp_path / name)
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28, 1)
    found = load_classifier(find_saved_model(os.path.dirname(path))).classify(images)
    np.testing.assert_array_equal(found, load_classifier(exported).classify(images))


@pytest.mark.parametrize("num_bytes", [0, 1, 1000])
def test_truncated_graph(copied, num_bytes):
    os.truncate(copied / "saved_model.pb", num_bytes)
    assert "not a SavedModel that can be used" in load_error(copied)


@pytest.mark.parametrize(
    "missing", ["", "variables.index", "variables.data-00000-of-00001"]
)
def test_missing_variables(copied, missing):
    if missing:
        os.remove(copied / "variables" / missing)
    else:
        shutil.rmtree(copied / "variables")
    error = load_error(copied)
    assert "not a SavedModel that can be used" in error
    assert "variables" in error


def test_damaged_variables(copied):
    path = copied / "variables" / "variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[5000] ^= 4
    path.write_bytes(content)
    assert "Checksum does not match" in load_error(copied)
    path.write_bytes(content[:1000])
    assert "not a SavedModel that can be used" in load_error(copied)


def save_foreign(path, function, **signature):
    module = tf.Module()
    module.function = tf.function(
        function,
        input_signature=[
            tf.TensorSpec(s, d, name=n) for n, (s, d) in signature.items()
        ],
    )
    tf.saved_model.save(
        module, str(path), signatures={"serving_default": module.function}
    )
    return path


def answer(probabilities):
    return {"probabilities": probabilities, "logits": probabilities}


@pytest.mark.parametrize(
    ("signature", "found"),
    [
        ({"x": ([None, 28, 28, 1], tf.uint8)}, "takes x uint8 (None, 28, 28, 1)"),
        ({"images": ([None, 28, 28, 1], tf.float32)}, "takes images float32"),
        ({"images": ([None, 28, 28, 4], tf.uint8)}, "uint8 (None, 28, 28, 4)"),
        ({"images": ([None, None, 28, 1], tf.uint8)}, "uint8 (None, None, 28, 1)"),
        ({"images": ([8, 28, 28, 1], tf.uint8)}, "uint8 (8, 28, 28, 1)"),
        ({"images": ([None, 784], tf.uint8)}, "uint8 (None, 784)"),
        ({"images": (None, tf.uint8)}, "takes images uint8 <unknown>"),
    ],
)
def test_other_inputs(tmp_path, signature, found):
    def constant(images):
        return answer(tf.zeros([tf.shape(images)[0], 3]))

    error = load_error(save_foreign(tmp_path / "model", constant, **signature))
    assert f"serving_default {found}" in error or found in error
    assert "expected images uint8 (None, height, width, 1 or 3)" in error


IMAGES = ([None, 28, 28, 1], tf.uint8)


def test_other_outputs(tmp_path):
    def scores(images):
        return {"scores": tf.zeros([tf.shape(images)[0], 3])}

    error = load_error(save_foreign(tmp_path / "model", scores, images=IMAGES))
    assert "gives scores float32 (None, 3), expected probabilities and logits" in error


def test_no_serving_default(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "model"))
    error = load_error(tmp_path / "model")
    assert "found the signatures [], expected serving_default" in error


def test_answers_that_are_no_numbers(tmp_path):
    def nothing(images):
        return answer(tf.fill([tf.shape(images)[0], 3], float("nan")))

    error = load_error(save_foreign(tmp_path / "model", nothing, images=IMAGES))
    assert "gives probabilities that are not finite" in error
