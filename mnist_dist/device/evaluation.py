"""Evaluation: every example exactly once, whatever the batch and replica count."""

import dataclasses

import numpy as np

from mnist_dist.device.feed import DeviceSplit
from mnist_dist.device.steps import EvaluateLoop

_BATCHES_PER_CALL = 8


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result over a split: mean loss, share and number of correct answers."""

    loss: float
    accuracy: float
    num_correct: int
    num_examples: int


def evaluate_split(
    evaluate_loop: EvaluateLoop,
    data: DeviceSplit,
    *,
    num_replicas: int,
    per_replica_batch: int = 250,
) -> Evaluation:
    """Evaluates a whole split."""
    totals = {"loss": 0.0, "correct": 0.0, "examples": 0.0}
    for indices in evaluation_indices(
        data.num_examples,
        num_replicas=num_replicas,
        per_replica_batch=per_replica_batch,
    ):
        sums = evaluate_loop(*data.feed(indices))
        totals = {name: total + float(sums[name]) for name, total in totals.items()}
    count = int(totals["examples"])
    if count != data.num_examples:
        raise AssertionError(f"evaluated {count} of {data.num_examples} examples")
    return Evaluation(
        loss=totals["loss"] / count,
        accuracy=totals["correct"] / count,
        num_correct=int(totals["correct"]),
        num_examples=count,
    )


def evaluation_indices(
    num_examples: int, *, num_replicas: int, per_replica_batch: int
) -> np.ndarray:
    """Lays the examples out for the device, in one shape for all calls.

    Returns:
      int32 [calls, batches, replicas, per-replica batch]: 0 to `num_examples` - 1 in
      order, then -1, which is padding.
    """
    row = num_replicas * per_replica_batch
    batches = min(_BATCHES_PER_CALL, -(-num_examples // row))
    calls = -(-num_examples // (row * batches))
    indices = np.full(calls * batches * row, -1, np.int32)
    indices[:num_examples] = np.arange(num_examples)
    return indices.reshape(calls, batches, num_replicas, per_replica_batch)
