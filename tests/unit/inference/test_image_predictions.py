"""Images classified from Python, as arrays and as files: what the SavedModel says."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from run_factory import export_untrained

from mnist_dist.errors import InputError
from mnist_dist.inference.image_predictions import predict_images


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    export_untrained(path / "export")
    return path


@pytest.fixture(scope="module")
def expected(run_dir, mnist):
    serve = tf.saved_model.load(f"{run_dir}/export/0").signatures["serving_default"]
    images = mnist.test.images[:300]
    return {k: v.numpy() for k, v in serve(images=tf.constant(images)).items()}


def assert_predicted(found, expected):
    np.testing.assert_array_equal(found.classes, expected["classes"])
    np.testing.assert_allclose(
        found.probabilities, expected["probabilities"], rtol=1e-5, atol=1e-6
    )


def test_arrays_and_files_give_what_the_saved_model_gives(
    run_dir, expected, mnist, tmp_path
):
    images = mnist.test.images[:300]
    found = predict_images(images, model_dir=f"{run_dir}")
    assert_predicted(found, expected)
    assert found.indices == list(range(300))
    found = predict_images(images[..., 0], export_dir=f"{run_dir}/export/0")
    assert_predicted(found, expected)
    np.save(tmp_path / "0.npy", images[:3])
    Image.fromarray(images[3, :, :, 0]).save(tmp_path / "1.png")
    first = {name: values[:4] for name, values in expected.items()}
    for paths in (tmp_path, [tmp_path / "0.npy", str(tmp_path / "1.png")]):
        found = predict_images(paths, model_dir=f"{run_dir}")
        assert_predicted(found, first)
        assert found.indices == [0, 1, 2, None]
        assert found.files == [f"{tmp_path}/0.npy"] * 3 + [f"{tmp_path}/1.png"]


def test_what_cannot_be_classified_is_an_input_error(run_dir, mnist, tmp_path):
    images = mnist.test.images[:2]
    where = {"model_dir": f"{run_dir}"}
    for given, arguments, message in (
        (images, {}, "found neither, expected one of the two"),
        (images, {"model_dir": f"{tmp_path}"}, "export': no directory"),
        (images / 255, where, r"found float64 \[2, 28, 28, 1\], expected uint8"),
        (images[0, :, :, 0], where, r"found uint8 \[28, 28\], expected"),
        (images[:0], where, "found no image"),
        (images[:, :9], where | {"preprocess": "off"}, "images: found 28x9 pixels"),
        (images, where | {"preprocess": "none"}, "--preprocess: found 'none'"),
        (f"{tmp_path}/none.png", where, "none.png.*No such file"),
        ([], where, "found no image"),
    ):
        with pytest.raises(InputError, match=message):
            predict_images(given, **arguments)


@pytest.mark.parametrize("inverse_share", [0.0, 0.02, None])
def test_picture_is_inverted_where_no_training_image_is_like_it(
    inverse_share, mnist, tmp_path
):
    resolved = {"edge_shade": 3.0, "inverse_share": inverse_share}
    export_untrained(tmp_path, resolved=resolved)
    images = mnist.test.images[:50]
    usual, inverse = (
        predict_images(pictures, export_dir=str(tmp_path)).probabilities
        for pictures in (images, 255 - images)
    )
    assert np.array_equal(inverse, usual) == (inverse_share == 0.0)
