"""Sums over the replicas."""

from typing import TypeVar

import tensorflow as tf

Nest = TypeVar("Nest")  # tensors in lists, tuples and dictionaries


def all_reduce_sum(replica: tf.distribute.ReplicaContext, nest: Nest) -> Nest:
    """Adds a nest of float32 tensors up over the replicas, all in one all-reduce."""
    if replica.num_replicas_in_sync == 1:
        return nest
    tensors = tf.nest.flatten(nest)
    flat = tf.concat([tf.reshape(t, [-1]) for t in tensors], axis=0)
    flat = replica.all_reduce(tf.distribute.ReduceOp.SUM, flat)
    parts = tf.split(flat, [t.shape.num_elements() for t in tensors])
    sums = [tf.reshape(p, t.shape) for p, t in zip(parts, tensors, strict=True)]
    return tf.nest.pack_sequence_as(nest, sums)
