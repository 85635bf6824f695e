"""The report against definitions spelt out in plain Python."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_dist.evaluation.classification_report import (
    MAX_CONFUSION_CLASSES,
    create_classification_report,
    format_report,
    surest_mistakes,
    to_json,
)


def create(labels, classes, *, num_classes, confidences=None, losses=None):
    n = len(labels)
    return create_classification_report(
        np.array(labels, np.int32),
        classes=np.array(classes, np.int64),
        confidences=np.full(n, 0.5) if confidences is None else np.array(confidences),
        losses=np.ones(n) if losses is None else np.array(losses),
        num_classes=num_classes,
    )


@settings(deadline=None)
@given(
    st.integers(2, 7).flatmap(
        lambda c: st.tuples(
            st.just(c),
            st.lists(
                st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1
            ),
        )
    )
)
def test_figures_are_their_definitions(case):
    num_classes, pairs = case
    report = create(*zip(*pairs, strict=True), num_classes=num_classes)
    assert report.num_examples == len(pairs)
    assert report.misclassified.tolist() == [
        i for i, (label, found) in enumerate(pairs) if label != found
    ]
    assert report.accuracy == sum(a == b for a, b in pairs) / len(pairs)
    for c in range(num_classes):
        both = sum(pair == (c, c) for pair in pairs)
        labelled = sum(label == c for label, _ in pairs)
        predicted = sum(found == c for _, found in pairs)
        assert report.support[c] == labelled
        for found, top, bottom in (
            (report.precision[c], both, predicted),
            (report.recall[c], both, labelled),
            (report.f1[c], 2 * both, labelled + predicted),
        ):
            assert found == top / bottom if bottom else math.isnan(found)
        for d in range(num_classes):
            assert report.confusion[c, d] == pairs.count((c, d))
    expected = {(a, b): pairs.count((a, b)) for a, b in pairs if a != b}
    assert {(a, b): n for a, b, n in report.top_confusions} == expected
    counts = [n for _, _, n in report.top_confusions]
    assert counts == sorted(counts, reverse=True)
    found = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert found["num_errors"] == len(report.misclassified)
    assert [m["index"] for m in found["misclassified"]] == report.misclassified.tolist()


def test_tables_show_what_is_wrong():
    report = create(
        [0, 1, 1, 2, 2, 2],
        [0, 1, 2, 2, 1, 1],
        num_classes=3,
        confidences=[0.9, 0.8, 0.6, 0.9, 0.7, 0.95],
    )
    lines = format_report(report).splitlines()
    assert lines[1].split() == ["0", "1", "100.00%", "100.00%", "100.00%"]
    assert lines[2].split() == ["1", "2", "33.33%", "50.00%", "40.00%"]
    assert lines[7].split() == ["0", "1", ".", "."]
    assert lines[9].split() == ["2", ".", "2", "1"]
    assert "most confused: 2 as 1: 2, 1 as 2: 1" in lines
    assert surest_mistakes(report).tolist() == [5, 4, 2]
    assert lines[-1] == "misclassified: 2, 4, 5"


def test_classes_without_an_image_or_a_prediction_are_left_out():
    """As class 0 where labels begin with 1, which is of no interest."""
    report = create([1, 1, 3], [1, 3, 3], num_classes=5)
    lines = format_report(report).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["1", "3"]
    assert lines[3] == "(without an image, and never predicted: 0, 2, 4)"
    assert [line.split() for line in lines[6:9]] == [
        ["1", "3"],
        ["1", "1", "1"],
        ["3", ".", "1"],
    ]
    # One that was predicted, or has images that were not found, is shown.
    report = create([0, 0], [1, 0], num_classes=2)
    assert format_report(report).splitlines()[2].split()[0] == "1"
    report = create([0, 1], [0, 0], num_classes=2)
    assert format_report(report).splitlines()[2].split()[0] == "1"


def test_many_classes_cost_no_square_of_memory():
    num_classes = 1 << 16
    labels = np.arange(num_classes)
    report = create(labels, labels[::-1], num_classes=num_classes)
    assert num_classes > MAX_CONFUSION_CLASSES
    assert report.confusion is None
    assert len(report.top_confusions) == num_classes
    assert "(the worst 20 of 65536 by F1)" in format_report(report)


def test_no_mistakes_and_no_finite_loss_can_be_shown():
    report = create([0, 1], [0, 1], num_classes=2, losses=[np.inf, 0.0])
    assert "misclassified" not in format_report(report)
    assert to_json(report)["loss"] is None
    assert report.accuracy == 1


@pytest.mark.parametrize("num_correct", [9688, 1, 9999])
def test_accuracy_is_the_nearest_number(num_correct):
    classes = np.r_[np.zeros(num_correct), np.ones(10_000 - num_correct)].astype(int)
    report = create(np.zeros(10_000, int), classes, num_classes=2)
    assert report.accuracy == num_correct / 10_000
