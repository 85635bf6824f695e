"""Sums over the replicas, in the order of the all-reduce."""

from typing import TypeVar

import tensorflow as tf

Nest = TypeVar("Nest")  # tensors, or their specs, in lists, tuples and dictionaries


def all_reduce_sum(replica: tf.distribute.ReplicaContext, nest: Nest) -> Nest:
    """Adds a nest of float32 tensors up over the replicas, all in one all-reduce."""
    if replica.num_replicas_in_sync == 1:
        return nest
    flat = replica.all_reduce(tf.distribute.ReduceOp.SUM, flatten(nest))
    return unflatten(flat, nest)


def flatten(nest: Nest) -> tf.Tensor:
    """Returns all values of a nest, one after another: float32 [values]."""
    return tf.concat([tf.reshape(t, [-1]) for t in tf.nest.flatten(nest)], axis=0)


def unflatten(flat: tf.Tensor, like: Nest) -> Nest:
    """Returns a nest with the shapes of another, from all its values."""
    shapes = [t.shape for t in tf.nest.flatten(like)]
    parts = tf.split(flat, [shape.num_elements() for shape in shapes])
    tensors = [tf.reshape(p, s) for p, s in zip(parts, shapes, strict=True)]
    return tf.nest.pack_sequence_as(like, tensors)
