"""Evaluation: every example exactly once, for any batch and number of replicas."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import tensorflow as tf

from mnist_dist.device.examples import gather_images, index_dtype, rows_for_gather
from mnist_dist.device.feed import DeviceSplit
from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling.forward_pass import run_forward_pass
from mnist_dist.modeling.losses import cross_entropy, is_correct
from mnist_dist.modeling.networks import normalize

_BATCHES_PER_CALL = 8

EvaluateLoop = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result over a split: mean loss, and the share of correct answers."""

    loss: float
    accuracy: float
    num_examples: int


def evaluate_split(
    evaluate_loop: EvaluateLoop,
    data: DeviceSplit,
    *,
    num_replicas: int,
    per_replica_batch: int = 250,
    around_call: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Evaluation:
    """Evaluates a whole split; each call of the devices is within `around_call`."""
    calls = evaluation_indices(
        data.num_examples,
        num_replicas=num_replicas,
        per_replica_batch=per_replica_batch,
    )
    sums = []
    for indices in calls:
        with around_call():
            sums.append(evaluate_loop(*data.feed(indices)).numpy())
    # Rounded once, so the order of the batches makes no difference.
    loss, correct, examples = map(math.fsum, np.reshape(sums, [-1, 3]).T)
    count = int(examples)
    if count != data.num_examples:
        raise AssertionError(f"evaluated {count} of {data.num_examples} examples")
    return Evaluation(
        loss=loss / count,
        accuracy=correct / count,
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
    strategy: tf.distribute.Strategy,
    state: TrainState,
    *,
    use_xla: bool = False,
    on_any_replicas: bool = False,
) -> EvaluateLoop:
    """Builds the function that evaluates rows of a padded index matrix.

    Args:
      strategy: the strategy in whose scope `state` was built.
      state: whose inference weights to evaluate.
      use_xla: compile the loop, where one replica runs it.
      on_any_replicas: whether the results must be the same to the last bit on any
        number of replicas; then XLA compiles each batch by itself on all of them.

    Returns:
      `evaluate_loop(images, labels, indices)`: as for training, but indices int64
      [batches, replicas, per-replica batch] where -1 is padding. Gives float32
      [batches, replicas, 3]: the sums of the losses, of the correct answers and of the
      examples over every index of a batch that is not padding.
    """
    num_replicas = strategy.num_replicas_in_sync
    compile_loop = use_xla and num_replicas == 1 and not on_any_replicas
    sum_batch = functools.partial(_sum_batch, state)
    if use_xla and on_any_replicas:
        sum_batch = tf.function(sum_batch, jit_compile=True, autograph=False)

    def replica_evaluate(
        images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        replica_id = tf.cast(replica.replica_id_in_sync_group, tf.int32)
        mine = indices[:, replica_id]
        weights = [tf.identity(v) for v in state.inference_weights()]
        rows, labels = rows_for_gather(images, labels, is_compiled=compile_loop)
        image_shape = tuple(images.shape[1:])
        num_batches = mine.shape[0]

        def add_row(
            row: tf.Tensor, sums: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.TensorArray]:
            index = mine[row]
            is_example = index >= 0
            index = tf.maximum(index, 0)
            batch = gather_images(rows, index, image_shape=image_shape)
            label = tf.gather(labels, index)
            return row + 1, sums.write(
                row, sum_batch(weights, batch, label, is_example)
            )

        _, sums = tf.while_loop(
            lambda row, _: row < num_batches,
            add_row,
            [
                tf.constant(0),
                tf.TensorArray(tf.float32, size=num_batches, element_shape=[3]),
            ],
        )
        is_mine = tf.range(num_replicas) == replica_id
        return tf.where(is_mine[:, tf.newaxis], sums.stack()[:, tf.newaxis], 0.0)

    @tf.function(jit_compile=compile_loop, autograph=False)
    def evaluate_loop(
        images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> tf.Tensor:
        indices = tf.cast(indices, index_dtype(is_compiled=compile_loop))
        sums = strategy.run(replica_evaluate, args=(images, labels, indices))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

    return evaluate_loop


def _sum_batch(
    state: TrainState,
    weights: list[tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
    is_example: tf.Tensor,
) -> tf.Tensor:
    """Returns the sums of loss, correct answers and examples of a batch, float32 [3]."""
    logits = run_forward_pass(
        state.model,
        normalize(images),
        variables=state.keras_weights,
        values=weights,
        training=False,
    ).logits
    columns = [
        tf.where(is_example, cross_entropy(logits, labels), 0.0),
        tf.cast(is_correct(logits, labels) & is_example, tf.float32),
        tf.cast(is_example, tf.float32),
    ]
    return tf.reduce_sum(tf.stack(columns), axis=1)
