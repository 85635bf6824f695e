"""The forward pass: from images to logits, by weights that are given as tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf


class ForwardPass(NamedTuple):
    """What a model computes of a batch.

    Attributes:
      logits: float32 [batch, num_classes].
      penalties: what the model adds to its loss in training: for weights, for
        activities, and by `add_loss`. Tensors of any shape, whose sums count. Empty
        in inference.
      values: of the variables after the pass, in the order in which they were given.
        The pass changes some of them, such as moving averages of statistics.
    """

    logits: tf.Tensor
    penalties: list[tf.Tensor]
    values: list[tf.Tensor]


def run_forward_pass(
    model: keras.Model,
    images: tf.Tensor,
    *,
    variables: Sequence[keras.Variable],
    values: Sequence[tf.Tensor],
    training: bool,
) -> ForwardPass:
    """Calls the model with other values than those that its variables hold.

    No variable is read or changed but those of the model that `variables` leaves out.

    Args:
      model: maps images to logits.
      images: float32 [batch, height, width, channels] in [0, 1].
      variables: of the model.
      values: one for each of `variables`.
      training: whether layers such as dropout behave as in training.
    """
    mapping = list(zip(variables, values, strict=True))
    with keras.StatelessScope(mapping, collect_losses=training) as scope:
        logits = tf.cast(model(images, training=training), tf.float32)
    penalties: list[tf.Tensor] = []
    if training:
        # Here nothing is collected, so `model.losses` are those of the weights alone.
        with keras.StatelessScope(mapping):
            penalties = [*scope.losses, *model.losses]
    return ForwardPass(
        logits, penalties, [scope.get_current_value(v) for v in variables]
    )
