"""The data that a model is evaluated on fit it, or are refused."""

import numpy as np
import pytest
from run_factory import save_data_set

from mnist_dist.data import load_dataset
from mnist_dist.errors import InputError
from mnist_dist.inference.evaluation_data import arrays_as_data, load_evaluation_data

DRAW = {"validation_split": "stratified", "validation_seed": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "validation"}, "--split: found validation, expected train or test"),
        ({"image_shape": (6, 5, 1)}, r"shape \(6, 5, 3\), expected \(6, 5, 1\)"),
        ({"num_classes": 3}, "has 4 classes, expected at most the model's 3"),
        ({"data_dir": "/no/such/place"}, "/no/such/place"),
    ],
)
def test_data_of_another_shape_or_kind_is_refused(change, message, tmp_path):
    wanted = {
        "split": "test",
        "data_dir": str(save_data_set(tmp_path)),
        "validation_examples": 0,
        **DRAW,
        "image_shape": (6, 5, 3),
        "num_classes": 4,
    } | change
    with pytest.raises(InputError, match=message):
        load_evaluation_data(wanted.pop("split"), **wanted)


@pytest.mark.parametrize("how", ["stratified", "last"])
def test_validation_examples_are_those_of_the_run(how, tmp_path):
    draw = {"validation_split": how, "validation_seed": 7}
    folder = str(save_data_set(tmp_path))
    run = load_dataset(folder, validation_examples=6, **draw)
    for split in ("validation", "train"):
        data = load_evaluation_data(
            split,
            data_dir=folder,
            validation_examples=6,
            **draw,
            image_shape=(6, 5, 3),
            num_classes=4,
        )
        assert data.split.name == split
        np.testing.assert_array_equal(data.split.images, getattr(run, split).images)


def test_test_images_of_a_smaller_data_set_need_no_validation_examples(tmp_path):
    data = load_evaluation_data(
        "test",
        data_dir=str(save_data_set(tmp_path)),
        validation_examples=5000,
        **DRAW,
        image_shape=(6, 5, 3),
        num_classes=10,
    )
    assert (data.split.name, len(data.split.labels)) == ("test", 53)


IMAGES, LABELS = np.zeros((3, 6, 5), np.uint8), np.array([0, 1, 3])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, LABELS, r"images float64 \[3, 6, 5, 1\], expected uint8"),
        (IMAGES[:, :5], LABELS, r"images uint8 \[3, 5, 5, 1\], expected uint8"),
        (IMAGES, LABELS[:2], r"labels int64 \[2\], expected an integer for each of"),
        (IMAGES, LABELS / 1.0, r"labels float64 \[3\], expected an integer"),
        (IMAGES, LABELS + 1, "labels 1 to 4, expected 0 to 3"),
        (IMAGES[:0], LABELS[:0], r"images uint8 \[0, 6, 5, 1\], expected"),
    ],
)
def test_arrays_of_another_form_are_refused(images, labels, message):
    with pytest.raises(InputError, match=message):
        arrays_as_data(images, labels, image_shape=(6, 5, 1), num_classes=4)


def test_grey_images_need_no_channel():
    data = arrays_as_data(IMAGES, LABELS, image_shape=(6, 5, 1), num_classes=4)
    assert data.split.images.shape == (3, 6, 5, 1)
    assert data.split.labels.tolist() == LABELS.tolist()
