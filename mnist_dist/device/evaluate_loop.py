"""Evaluation: every example exactly once, for any batch and number of replicas."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mnist_dist.device.examples import gather_images, index_dtype, rows_for_gather
from mnist_dist.device.feed import DeviceSplit
from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling.forward_pass import run_forward_pass
from mnist_dist.modeling.losses import cross_entropy, is_correct
from mnist_dist.modeling.networks import normalize

_BATCHES_PER_CALL = 8

EvaluateLoop = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]


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


def create_evaluate_loop(
    strategy: tf.distribute.Strategy, state: TrainState, *, use_xla: bool = False
) -> EvaluateLoop:
    """Builds the function that evaluates rows of a padded index matrix.

    Returns:
      `evaluate_loop(images, labels, indices)`: as for training, but indices int64
      [batches, replicas, per-replica batch] where -1 is padding. Gives float64
      sums of `loss`, `correct` and `examples` over every index that is not padding.
    """
    compile_loop = use_xla and strategy.num_replicas_in_sync == 1

    def replica_evaluate(
        images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        mine = indices[:, tf.cast(replica.replica_id_in_sync_group, tf.int32)]
        weights = [tf.identity(v) for v in state.inference_weights()]
        rows, labels = rows_for_gather(images, labels, is_compiled=compile_loop)
        image_shape = tuple(images.shape[1:])

        def add_row(row: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            index = mine[row]
            is_example = index >= 0
            index = tf.maximum(index, 0)
            logits = run_forward_pass(
                state.model,
                normalize(gather_images(rows, index, image_shape=image_shape)),
                variables=state.keras_weights,
                values=weights,
                training=False,
            ).logits
            label = tf.gather(labels, index)
            columns = [
                tf.where(is_example, cross_entropy(logits, label), 0.0),
                tf.cast(is_correct(logits, label) & is_example, tf.float32),
                tf.cast(is_example, tf.float32),
            ]
            sums = tf.reduce_sum(tf.stack(columns), axis=1)
            return row + 1, total + tf.cast(sums, tf.float64)

        _, total = tf.while_loop(
            lambda row, _: row < tf.shape(mine)[0],
            add_row,
            [tf.constant(0), tf.zeros([3], tf.float64)],
        )
        return total

    @tf.function(jit_compile=compile_loop, autograph=False)
    def evaluate_loop(
        images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        indices = tf.cast(indices, index_dtype(is_compiled=compile_loop))
        totals = strategy.run(replica_evaluate, args=(images, labels, indices))
        totals = strategy.reduce(tf.distribute.ReduceOp.SUM, totals, axis=None)
        return dict(
            zip(("loss", "correct", "examples"), tf.unstack(totals), strict=True)
        )

    return evaluate_loop
