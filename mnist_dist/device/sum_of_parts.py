"""Adds up what the parts of a batch add to a step, over all replicas.

`add_up_by_all_reduce` leaves the order of addition to the all-reduce. `OrderedSum` adds
in an order that depends on the number of microbatches alone, so its result is the same
to the last bit on any number of replicas.
"""

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mnist_dist.device.all_reduce import all_reduce_sum, flatten, unflatten
from mnist_dist.device.step_sums import StepSums
from mnist_dist.device.summation_tree import (
    Node,
    children,
    count_additions,
    whole_subtrees,
)

# From the number of a part, int32 [], to what it adds to a step.
ComputePart = Callable[[tf.Tensor], StepSums]
# (replica, compute_part, control) -> (the sums over all parts, control over all replicas).
AddUp = Callable[
    [tf.distribute.ReplicaContext, ComputePart, tf.Tensor],
    tuple[StepSums, tf.Tensor],
]


def add_up_by_all_reduce(
    replica: tf.distribute.ReplicaContext,
    compute_part: ComputePart,
    control: tf.Tensor,
) -> tuple[StepSums, tf.Tensor]:
    """Computes one part on each replica; all is added up in one all-reduce."""
    share = compute_part(tf.cast(replica.replica_id_in_sync_group, tf.int32))
    return all_reduce_sum(replica, (share, control))


class OrderedSum:
    """Adds up equal microbatches, each replica its consecutive share of them."""

    def __init__(
        self, *, num_microbatches: int, num_replicas: int, like: StepSums
    ) -> None:
        """Plans the additions.

        Args:
          num_microbatches: a multiple of `num_replicas`.
          num_replicas: that share them out.
          like: specs of what a microbatch adds, float32.
        """
        self._like = like
        self._root = (0, num_microbatches)
        self._num_replicas = num_replicas
        self._share = num_microbatches // num_replicas
        self._subtrees = [
            whole_subtrees(self._root, (first, first + self._share))
            for first in range(0, num_microbatches, self._share)
        ]
        # int32 [replicas, share]: additions after each microbatch.
        self._num_additions = np.array(
            [
                list(itertools.chain.from_iterable(map(count_additions, nodes)))
                for nodes in self._subtrees
            ],
            np.int32,
        )

    def __call__(
        self,
        replica: tf.distribute.ReplicaContext,
        compute_part: ComputePart,
        control: tf.Tensor,
    ) -> tuple[StepSums, tf.Tensor]:
        """Computes and adds up all microbatches, and the replicas' control values.

        Args:
          replica: whose share is computed here, one microbatch after the other.
          compute_part: is traced once, in a loop, so its bits depend on no replica.
          control: float32 [2].

        Returns:
          The sums over all microbatches, and those of the control values over all
          replicas.
        """
        replica_id = tf.cast(replica.replica_id_in_sync_group, tf.int32)
        partial = self._sum_share(replica_id, compute_part)
        if self._num_replicas == 1:
            return unflatten(partial[0], self._like), control
        flat = tf.concat([tf.reshape(partial, [-1]), control], axis=0)
        gathered = replica.all_gather(flat, axis=0)
        gathered = tf.reshape(gathered, [self._num_replicas, flat.shape[0]])
        partials = tf.reshape(gathered[:, :-2], [self._num_replicas, *partial.shape])
        sums = {
            node: partials[i, k]
            for i, nodes in enumerate(self._subtrees)
            for k, node in enumerate(nodes)
        }
        total = _sum_tree(self._root, sums)
        return unflatten(total, self._like), tf.reduce_sum(gathered[:, -2:], axis=0)

    def _sum_share(self, replica_id: tf.Tensor, compute_part: ComputePart) -> tf.Tensor:
        """Returns float32 [most subtrees of a replica, values]: this one's, then junk."""
        num_values = sum(
            spec.shape.num_elements() for spec in tf.nest.flatten(self._like)
        )
        heights = np.cumsum(1 - self._num_additions, axis=1)
        num_additions = tf.constant(self._num_additions)[replica_id]
        stack = tf.TensorArray(
            tf.float32,
            size=int(heights.max()),
            element_shape=[num_values],
            clear_after_read=False,
        )

        def add_microbatch(
            number: tf.Tensor, height: tf.Tensor, stack: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            flat = flatten(compute_part(replica_id * self._share + number))

            def add(
                left: tf.Tensor, height: tf.Tensor, flat: tf.Tensor
            ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                return left - 1, height - 1, _add(stack.read(height - 1), flat)

            _, height, flat = tf.while_loop(
                lambda left, *_: left > 0,
                add,
                [num_additions[number], height, flat],
                parallel_iterations=1,
            )
            return number + 1, height + 1, stack.write(height, flat)

        *_, stack = tf.while_loop(
            lambda number, *_: number < self._share,
            add_microbatch,
            [tf.constant(0), tf.constant(0), stack],
            parallel_iterations=1,  # the memory of one microbatch
        )
        return stack.stack()[: max(map(len, self._subtrees))]


def _sum_tree(node: Node, sums: dict[Node, tf.Tensor]) -> tf.Tensor:
    if node in sums:
        return sums[node]
    left, right = children(node)
    return _add(_sum_tree(left, sums), _sum_tree(right, sums))


def _add(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    # Of `a + b` TensorFlow's arithmetic optimizer makes sums of many, in another order.
    return tf.reduce_sum(tf.stack([a, b]), axis=0)
