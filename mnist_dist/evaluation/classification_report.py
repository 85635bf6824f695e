"""How good predictions are: per class, which are confused, which images are wrong."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# A confusion matrix of more classes is too large to keep, or to look at.
MAX_CONFUSION_CLASSES = 1024
_MAX_PRINTED_CLASSES = 20
_NUM_PRINTED_MISTAKES = 10
_NUM_PRINTED_INDICES = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ClassificationReport:
    """Results over a split. A ratio with nothing to divide by is NaN.

    Attributes:
      loss: mean cross-entropy.
      labels: int32 [n], what is right.
      classes: int64 [n], what was predicted.
      confidences: float64 [n], the probability of what was predicted.
      support: int64 [num_classes], images of each class.
      precision: float64 [num_classes], share of a class's predictions that are right.
      recall: float64 [num_classes], share of a class's images that are found.
      f1: float64 [num_classes], the harmonic mean of these two.
      confusion: int64 [num_classes, num_classes], images by label (row) and
        prediction (column); None for more than `MAX_CONFUSION_CLASSES`.
      top_confusions: (label, predicted, number of images), the most frequent first.
      misclassified: int64 [errors], positions of the wrong ones in the split.
    """

    loss: float
    labels: np.ndarray
    classes: np.ndarray
    confidences: np.ndarray
    support: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    confusion: np.ndarray | None
    top_confusions: list[tuple[int, int, int]]
    misclassified: np.ndarray

    @property
    def num_examples(self) -> int:
        """Images in the split."""
        return len(self.labels)

    @property
    def num_errors(self) -> int:
        """Images that got the wrong class."""
        return len(self.misclassified)

    @property
    def accuracy(self) -> float:
        """Share of images that got the right class."""
        return (self.num_examples - self.num_errors) / self.num_examples


def create_classification_report(
    labels: np.ndarray,
    *,
    classes: np.ndarray,
    confidences: np.ndarray,
    losses: np.ndarray,
    num_classes: int,
) -> ClassificationReport:
    """Compares predictions with labels.

    Args:
      labels: int [n], 0 to num_classes - 1.
      classes: int [n], the same range.
      confidences: float [n].
      losses: float [n].
      num_classes: width of the confusion matrix.
    """
    support = np.bincount(labels, minlength=num_classes)
    predicted = np.bincount(classes, minlength=num_classes)
    correct = np.bincount(labels[labels == classes], minlength=num_classes)
    wrong = np.flatnonzero(labels != classes)
    pairs = labels.astype(np.int64) * num_classes + classes
    confusion = None
    if num_classes <= MAX_CONFUSION_CLASSES:
        counted = np.bincount(pairs, minlength=num_classes**2)
        confusion = counted.reshape(num_classes, num_classes)
    kinds, counts = np.unique(pairs[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ClassificationReport(
        loss=float(np.mean(losses)),
        labels=labels,
        classes=classes,
        confidences=confidences,
        support=support,
        precision=_ratio(correct, predicted),
        recall=_ratio(correct, support),
        f1=_ratio(2 * correct, support + predicted),
        confusion=confusion,
        top_confusions=[
            (int(kinds[i] // num_classes), int(kinds[i] % num_classes), int(counts[i]))
            for i in order
        ],
        misclassified=wrong,
    )


def to_json(
    report: ClassificationReport, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Returns a report as what JSON can hold; what is not finite is None.

    Where classes have names, each of `classes` has its `name`.
    """
    per_class = [
        {
            "class": number,
            **({"name": name} if (name := _name(number, class_names)) else {}),
            "images": int(report.support[number]),
            "precision": _finite(report.precision[number]),
            "recall": _finite(report.recall[number]),
            "f1": _finite(report.f1[number]),
        }
        for number in range(len(report.support))
    ]
    return {
        "num_examples": report.num_examples,
        "num_errors": report.num_errors,
        "accuracy": report.accuracy,
        "loss": _finite(report.loss),
        "classes": per_class,
        "confusion": None if report.confusion is None else report.confusion.tolist(),
        "top_confusions": [
            {"label": label, "predicted": predicted, "images": count}
            for label, predicted, count in report.top_confusions
        ],
        "misclassified": [
            {
                "index": int(i),
                "label": int(report.labels[i]),
                "predicted": int(report.classes[i]),
                "confidence": _finite(report.confidences[i]),
            }
            for i in report.misclassified
        ],
    }


def format_summary(report: ClassificationReport) -> str:
    """Returns the result as one line."""
    return (
        f"accuracy {report.accuracy:.2%}  errors {report.num_errors:,} of "
        f"{report.num_examples:,}  loss {report.loss:.4f}"
    )


def format_report(
    report: ClassificationReport, class_names: Sequence[str] | None = None
) -> str:
    """Returns a report as tables for a terminal.

    Of many classes the worst are shown, and the matrix is left out. So are classes
    without an image that were never predicted, as 0 where labels begin with 1. Where
    classes have names, the table of classes ends with them.
    """
    is_empty = (report.support == 0) & np.isnan(report.precision)
    shown = np.flatnonzero(~is_empty)
    num_classes = len(shown)
    if num_classes > _MAX_PRINTED_CLASSES:
        order = np.argsort(np.nan_to_num(report.f1[shown], nan=2.0), kind="stable")
        shown = shown[order[:_MAX_PRINTED_CLASSES]]
    lines = ["class    images  precision  recall      F1"]
    for i in shown:
        ratios = (report.precision[i], report.recall[i], report.f1[i])
        precision, recall, f1 = ("-" if math.isnan(r) else f"{r:.2%}" for r in ratios)
        figures = f"{report.support[i]:>6,}  {precision:>9}  {recall:>6}  {f1:>6}"
        name = _printable(_name(int(i), class_names))
        lines.append(f"{i:<8} {figures}  {name}".rstrip())
    if empty := np.flatnonzero(is_empty)[:_NUM_PRINTED_INDICES].tolist():
        more = ", ..." if is_empty.sum() > len(empty) else ""
        listed = ", ".join(map(str, empty))
        lines.append(f"(without an image, and never predicted: {listed}{more})")
    if num_classes > len(shown):
        lines.append(f"(the worst {len(shown)} of {num_classes} by F1)")
    elif report.confusion is not None:
        width = max(len(str(report.confusion.max())), 3) + 1
        lines += ["", "confusion: label in rows, prediction in columns"]
        lines.append(" " * 4 + "".join(f"{i:>{width}}" for i in shown))
        for label, row in zip(
            shown, report.confusion[np.ix_(shown, shown)], strict=True
        ):
            cells = "".join(f"{count or '.':>{width}}" for count in row)
            lines.append(f"{label:>4}{cells}")
    if report.top_confusions:
        pairs = [
            f"{label} as {predicted}: {count}"
            for label, predicted, count in report.top_confusions[:_NUM_PRINTED_MISTAKES]
        ]
        lines += ["", f"most confused: {', '.join(pairs)}"]
        lines += ["", "surest mistakes:    index  label  predicted  confidence"]
        for i in surest_mistakes(report)[:_NUM_PRINTED_MISTAKES]:
            lines.append(
                f"{i:>25}  {report.labels[i]:>5}  {report.classes[i]:>9}  "
                f"{report.confidences[i]:>10.2%}"
            )
        listed = ", ".join(map(str, report.misclassified[:_NUM_PRINTED_INDICES]))
        left = report.num_errors - _NUM_PRINTED_INDICES
        more = f" and {left:,} more, which --format=json lists" if left > 0 else ""
        lines += ["", f"misclassified: {listed}{more}"]
    return "\n".join(lines)


def surest_mistakes(report: ClassificationReport) -> np.ndarray:
    """Returns positions of the misclassified images, the most confident first."""
    order = np.argsort(-report.confidences[report.misclassified], kind="stable")
    return report.misclassified[order]


def describe_class(number: int, class_names: Sequence[str] | None) -> str:
    """Returns the name of a class, on one line; its number if it has none."""
    return _printable(_name(number, class_names)) or str(number)


def _name(number: int, class_names: Sequence[str] | None) -> str:
    """Returns the name of a class, if it has one: a model may know more classes."""
    return class_names[number] if class_names and number < len(class_names) else ""


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return numerator / denominator


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
