"""What a part of the batch adds to a step: forward and backward pass."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling.augmentation import augment
from mnist_dist.modeling.forward_pass import run_forward_pass
from mnist_dist.modeling.losses import cross_entropy, is_correct
from mnist_dist.modeling.networks import normalize
from mnist_dist.modeling.randomness import at_position


class StepSums(NamedTuple):
    """What is added up in a step: the share of one part, then the sums.

    Attributes:
      gradients: of the scaled loss, one for each parameter, float32.
      means: of the statistics that the forward pass moved, float32.
      loss_sum: cross-entropy of all examples, float32 [].
      num_correct: how many of them were classified correctly, float32 [].
    """

    gradients: list[tf.Tensor]
    means: list[tf.Tensor]
    loss_sum: tf.Tensor
    num_correct: tf.Tensor


def sums_like(state: TrainState) -> StepSums:
    """Returns the shapes of the sums of a state, as a nest of float32 specs."""

    def specs(variables: list[tf.Variable]) -> list[tf.TensorSpec]:
        return [tf.TensorSpec(v.shape) for v in variables]

    return StepSums(
        specs(state.parameters),
        specs(state.statistics[: state.num_moving]),
        tf.TensorSpec([]),
        tf.TensorSpec([]),
    )


# (parameters, statistics, images, labels, first_position, loss_scale) -> StepSums.
ComputeSums = Callable[
    [
        list[tf.Tensor],
        list[tf.Tensor],
        tf.Tensor,
        tf.Tensor,
        tf.Tensor,
        tf.Tensor,
    ],
    StepSums,
]


def create_compute_sums(
    state: TrainState,
    *,
    global_batch_size: int,
    num_parts: int,
    seed: int,
    with_augmentation: bool,
    label_smoothing: float,
) -> ComputeSums:
    """Builds the function that computes one part's share of the step's sums.

    The sum over all parts is that of the whole batch: of the mean cross-entropy over
    its examples, and of the mean of each penalty and statistic over the parts. Penalties
    are the model's own: for weights, for activities, and what layers add by `add_loss`.
    One that is a mean over examples, as Keras after 3.12 makes of
    `activity_regularizer`, is the same for any number of parts; one that is a sum over
    examples shrinks with the number.

    Args:
      state: whose model to train; its variables are neither read nor changed.
      global_batch_size: examples a step, in all parts together.
      num_parts: equal parts that the batch is cut into.
      seed: of augmentation and dropout.
      with_augmentation: whether images get a random affine change.
      label_smoothing: weight of the uniform distribution in the targets.

    Returns:
      `compute_sums(parameters, statistics, images, labels, first_position,
      loss_scale)`: the values of the state's variables; images uint8 [part, height,
      width, channels] and their labels; the stream position of the first of them,
      int64 []; what the loss is multiplied by, float32 [].
    """
    num_examples = global_batch_size // num_parts
    num_parameters = len(state.keras_parameters)
    moving = slice(num_parameters, num_parameters + state.num_moving)

    def compute_sums(
        parameters: list[tf.Tensor],
        statistics: list[tf.Tensor],
        images: tf.Tensor,
        labels: tf.Tensor,
        first_position: tf.Tensor,
        loss_scale: tf.Tensor,
    ) -> StepSums:
        images = normalize(images)
        if with_augmentation:
            images = augment(images, first_position, seed=seed)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            with at_position(first_position, num_examples=num_examples):
                forward = run_forward_pass(
                    state.model,
                    images,
                    variables=state.keras_weights,
                    values=parameters + statistics,
                    training=True,
                )
            losses = cross_entropy(
                forward.logits, labels, label_smoothing=label_smoothing
            )
            loss_sum = tf.reduce_sum(losses)
            totals = [tf.reduce_sum(tf.cast(p, tf.float32)) for p in forward.penalties]
            loss = loss_sum / global_batch_size
            loss += tf.add_n(totals or [0.0]) / num_parts
            scaled_loss = loss * loss_scale
        gradients = tape.gradient(
            scaled_loss, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        means = [tf.cast(v, tf.float32) / num_parts for v in forward.values[moving]]
        correct = is_correct(forward.logits, labels)
        num_correct = tf.reduce_sum(tf.cast(correct, tf.float32))
        return StepSums(gradients, means, loss_sum, num_correct)

    return compute_sums
