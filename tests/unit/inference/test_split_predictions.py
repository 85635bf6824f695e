import numpy as np
import pytest
import tensorflow as tf
from run_factory import create_run, save_data_set

from mnist_dist.data import Split, load_dataset
from mnist_dist.inference.split_predictions import (
    create_logits_function,
    predict_split,
)
from mnist_dist.inference.trained_model import load_trained_model

NUM_CLASSES = 5


@pytest.fixture
def split():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2503, 2, 3, 1), np.uint8)
    return Split("test", images, rng.integers(0, NUM_CLASSES, 2503).astype(np.int32))


def linear(seed):
    matrix = np.random.default_rng(seed).normal(0, 2, (6, NUM_CLASSES))
    return lambda images: (images.reshape(len(images), -1) / 255 @ matrix).astype(
        np.float32
    )


def softmax(logits):
    exp = np.exp(logits.astype(np.float64))
    return exp / exp.sum(axis=1, keepdims=True)


def test_predictions_of_each_model_and_of_their_mean_probabilities(split):
    models = [linear(seed) for seed in (1, 2, 3)]
    each, together = predict_split(models, split, num_classes=NUM_CLASSES)
    probabilities = [softmax(model(split.images)) for model in models]
    rows = np.arange(len(split.labels))
    for found, p in zip(
        [*each, together], [*probabilities, np.mean(probabilities, axis=0)], strict=True
    ):
        np.testing.assert_array_equal(found.classes, p.argmax(axis=1))
        np.testing.assert_allclose(found.confidences, p.max(axis=1), rtol=1e-6)
        np.testing.assert_allclose(
            found.losses, -np.log(p[rows, split.labels]), rtol=1e-5
        )
    assert (each[0].classes != together.classes).any()


def test_equal_logits_give_the_first_class_and_large_ones_no_overflow():
    split = Split("test", np.zeros((2, 1, 1, 1), np.uint8), np.array([1, 0], np.int32))
    logits = np.array([[0, 5, 5], [-1e4, 1e4, 0]], np.float32)
    (found,), together = predict_split([lambda _: logits], split, num_classes=3)
    assert found.classes.tolist() == [1, 1]
    np.testing.assert_allclose(found.losses, [np.log(2), 2e4], rtol=1e-2)
    assert together.losses[1] == np.inf


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("num_images", [1, 7, 53])
def test_logits_are_the_models_on_any_number_of_replicas(
    num_replicas, num_images, tmp_path, create_strategy
):
    data_dir = save_data_set(tmp_path / "data")
    written = create_run(tmp_path / "run", data_dir=data_dir)[1]
    strategy = create_strategy(num_replicas)
    with strategy.scope():
        trained = load_trained_model(f"{tmp_path}/run")
    images = load_dataset(data_dir).test.images[:num_images]
    found = create_logits_function(strategy, trained.state)(images)
    x = images.reshape(num_images, -1) / 255
    w = {name.removeprefix("ema/dense_layer_"): a for name, a in written.items()}
    hidden = np.maximum(x @ w["1/kernel"] + w["1/bias"], 0)
    np.testing.assert_allclose(
        found, hidden @ w["2/kernel"] + w["2/bias"], rtol=1e-4, atol=1e-4
    )
    assert found.dtype == np.float32


def test_new_weights_show_without_a_new_function(tmp_path, create_strategy):
    data_dir = save_data_set(tmp_path / "data")
    create_run(tmp_path / "run", data_dir=data_dir)
    trained = load_trained_model(f"{tmp_path}/run")
    logits = create_logits_function(tf.distribute.get_strategy(), trained.state)
    images = load_dataset(data_dir).test.images
    assert logits(images).any()
    zeros = {n: np.zeros_like(a) for n, a in trained.state.to_arrays().items()}
    trained.state.from_arrays(zeros)
    assert not logits(images).any()
