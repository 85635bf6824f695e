"""tools/benchmark.py: the same losses before any time, a row for each side, ratios."""

import numpy as np
import pytest
from benchmarks import report, turns
from benchmarks.group import Group
from benchmarks.limits import Limits
from benchmarks.side import Rank, Side, SideError
from benchmarks.work import Case, comparison_images, comparison_loss, first_weights
from benchmarks.worker import Worker

LIMITS = Limits({"float32": 1e12, "bfloat16": 1e12}, 1e10)


class InThisProcess:
    """A group of sides without a process of its own."""

    def __init__(self, create):
        self.sides = list(create)
        self._worker = Worker(create)

    def ask(self, do, **details):
        return self._worker.answer({"do": do, **details})


def constant_side(logit):
    def create(case):
        logits = np.zeros([1000, 10])
        logits[:, 0] = logit
        return Side(lambda: None, lambda images: logits)

    return create


def test_sides_of_tensorflow_come_to_one_loss_and_each_has_a_row():
    from benchmarks.tensorflow_sides import create_sides

    group = InThisProcess(create_sides(Rank(), num_replicas=1))
    case = Case("mlp", 32, 4)
    sides = ["mnist_dist", "our step in a Python loop", "Keras fit"]
    timings, left_out = turns.compare(
        case, [(group, side) for side in sides], rounds=2, seconds=0
    )
    assert left_out == []
    assert [t.side for t in timings] == sides
    assert {round(t.loss, 4) for t in timings} == {round(timings[0].loss, 4)}
    assert timings[0].loss < loss_before_training(case)
    assert all(len(t.rates) == len(t.ratios) == 2 for t in timings)
    table = report.format_timings(timings, LIMITS)
    rows = table.splitlines()[2:]
    assert [row[2:36].strip() for row in rows] == sides
    assert timings[0].ratios == (1, 1)
    assert timings[1].ratios[0] == timings[0].rates[0] / timings[1].rates[0]


def loss_before_training(case):
    kernel_1, _, kernel_2, _ = first_weights(case.model)
    hidden = np.maximum(comparison_images().reshape(1000, -1) @ kernel_1, 0)
    return comparison_loss(hidden @ kernel_2)


def test_nothing_is_timed_where_losses_differ():
    group = InThisProcess({"one": constant_side(0.0), "other": constant_side(9.0)})
    with pytest.raises(turns.NotTheSameError, match="mlp, batch 1, float32: found"):
        turns.compare(
            Case("mlp", 1, 1), [(group, "one"), (group, "other")], rounds=1, seconds=0
        )


def test_a_side_that_cannot_is_left_out_and_named():
    def cannot(case):
        raise SideError("no compiler")

    group = InThisProcess({"one": constant_side(0.0), "other": cannot})
    timings, left_out = turns.compare(
        Case("cnn", 1, 1), [(group, "one"), (group, "other")], rounds=1, seconds=0
    )
    assert [t.side for t in timings] == ["one"]
    assert left_out == ["other, cnn, batch 1, float32: left out: no compiler"]


def test_a_framework_has_its_sides_or_is_missing():
    group = Group("jax")
    try:
        assert (group.sides == ["JAX scan"]) == (group.missing is None)
    finally:
        group.close()


@pytest.mark.parametrize(
    ("model", "operations", "parameters"),
    [
        # 784 x 128 + 128 x 10 multiplications; the first layer has two products.
        ("mlp", 4 * 784 * 128 + 6 * 1280, 785 * 128 + 1290),
        (
            "cnn",
            4 * 196 * 800 + 6 * (49 * 18432 + 16 * 73728 + 20480),
            832 + 18496 + 73856 + 20490,
        ),
    ],
)
def test_operations_and_parameters_of_the_models(model, operations, parameters):
    case = Case(model, 32, 1)
    assert case.operations == operations
    assert case.num_parameters == parameters
