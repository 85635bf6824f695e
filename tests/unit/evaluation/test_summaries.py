"""What the evaluations leave on disk, as TensorBoard reads it."""

import os
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from full_disk import file_size_limit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from mnist_dist.errors import RunError
from mnist_dist.evaluation.classification_report import (
    create_classification_report,
    format_report,
)
from mnist_dist.evaluation.summaries import save_summaries
from mnist_dist.run.board_images import draw_captioned_grid, draw_confusion


@pytest.fixture
def report():
    """Two of three images right."""
    return create_classification_report(
        np.array([0, 1, 2], np.int32),
        classes=np.array([0, 1, 1]),
        confidences=np.array([0.9, 0.8, 0.7]),
        losses=np.array([0.25, 0.5, 3.0]),
        num_classes=3,
    )


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)


def test_tensorboard_shows_the_report_and_its_pictures(report, images, tmp_path):
    names = ("zero", "one", "two")
    save_summaries(str(tmp_path), 7, report, images=images, class_names=names)
    (name,) = os.listdir(tmp_path)
    assert name == "events.out.tfevents.000000000007.v2"
    shown = EventAccumulator(str(tmp_path)).Reload()
    tags = ["loss", "accuracy", "errors", "report", "f1/0", "f1/1", "f1/2"]
    tags += ["classes/0", "classes/1", "classes/2"]
    assert set(shown.Tags()["tensors"]) == {*tags, "confusion", "mistakes"}
    found = {}
    for tag in shown.Tags()["tensors"]:
        (event,) = shown.Tensors(tag)
        assert event.step == 7
        assert event.wall_time > 1e9
        found[tag] = make_ndarray(event.tensor_proto)
    assert found["loss"] == 1.25
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["errors"] == 1
    text = found["report"].item().decode()
    assert textwrap.dedent(text) == format_report(report, names)  # as code in Markdown
    pictures = {}
    for tag in ("confusion", "mistakes"):
        assert shown.SummaryMetadata(tag).plugin_data.plugin_name == "images"
        width, height, png = found[tag].tolist()
        pictures[tag] = tf.io.decode_png(png).numpy()
        assert pictures[tag].shape[:2] == (int(height), int(width))
    np.testing.assert_array_equal(
        pictures["confusion"], draw_confusion(report.confusion)
    )
    expected = draw_captioned_grid(images[2:], [("is two", "70% for one")], columns=6)
    np.testing.assert_array_equal(pictures["mistakes"], expected)


def test_full_disk_leaves_no_summaries_cut_short(report, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 99, 99, 3), np.uint8)
    with file_size_limit(8192), pytest.raises(RunError, match="cannot be written"):
        save_summaries(str(tmp_path), 7, report, images=images, class_names=None)
    assert os.listdir(tmp_path) == []
