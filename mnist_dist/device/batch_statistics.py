"""BatchNormalization's moving statistics, computed anew over training batches.

The moving averages begin at mean 0 and variance 1, and lag behind the weights. Over a few
batches of the weights as they are, the mean has neither fault.

Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
Generalization" (2018), section 3.2, where averaged weights need statistics of their own.
"""

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from mnist_dist.device.examples import gather_images, index_dtype, rows_for_gather
from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.modeling.forward_pass import run_forward_pass
from mnist_dist.modeling.networks import normalize
from mnist_dist.modeling.randomness import at_position

# (images, labels, indices, num_batches, first_position) -> nothing.
RenewStatistics = Callable[
    [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], None
]


def create_renew_statistics(
    strategy: tf.distribute.Strategy, state: TrainState, *, part_size: int
) -> RenewStatistics:
    """Builds the function that sets the statistics of the inference weights anew.

    Each replica computes all of it, so its bits do not depend on their number, if the
    size of the parts does not. Images are taken as they are, without `augment`; layers
    behave as in training.

    Args:
      strategy: whose replicas to set.
      state: whose moving average to set, or whose weights where there is none.
      part_size: examples that a layer normalises together, a part of the batch.

    Returns:
      `renew(images, labels, indices, num_batches, first_position)`: examples and indices
      as for the train loop; how many of the rows of `indices` to take, at least 1; the
      stream position of the first of them, int64 [].

    Raises:
      InputError: the model has no such statistics.
    """
    layers = [
        layer
        for layer in state.model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and not layer.renorm
    ]
    moving = {id(v) for x in layers for v in (x.moving_mean, x.moving_variance)}
    places = [n for n, v in enumerate(state.keras_weights) if id(v) in moving]
    if not places:
        raise InputError(
            "--statistics_batches: found a model without BatchNormalization that is "
            "trained, expected 0"
        )

    def replica_renew(
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        num_batches: tf.Tensor,
        first_position: tf.Tensor,
    ) -> None:
        rows, _ = rows_for_gather(images, labels, is_compiled=False)
        weights = [tf.identity(v) for v in state.inference_weights()]
        parts = tf.reshape(indices, [-1, part_size])
        num_parts = num_batches * (indices.shape[1] // part_size)

        def add_part(part: tf.Tensor, sums: list[tf.Tensor]) -> tuple:
            position = first_position + tf.cast(part, tf.int64) * part_size
            image_shape = tuple(images.shape[1:])
            with at_position(position, num_examples=part_size):
                values = run_forward_pass(
                    state.model,
                    normalize(
                        gather_images(rows, parts[part], image_shape=image_shape)
                    ),
                    variables=state.keras_weights,
                    values=weights,
                    training=True,
                ).values
            return part + 1, [
                total + values[place] for total, place in zip(sums, places, strict=True)
            ]

        zeros = [tf.zeros_like(weights[place]) for place in places]
        _, sums = tf.while_loop(
            lambda part, _: part < num_parts, add_part, [tf.constant(0), zeros]
        )
        for total, place in zip(sums, places, strict=True):
            mean = total / tf.cast(num_parts, total.dtype)
            state.inference_weights()[place].assign(mean)

    @tf.function(autograph=False)
    def renew(
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        num_batches: tf.Tensor,
        first_position: tf.Tensor,
    ) -> None:
        indices = tf.cast(indices, index_dtype(is_compiled=False))
        with _without_memory(layers):
            strategy.run(
                replica_renew,
                args=(images, labels, indices, num_batches, first_position),
            )

    return renew


@contextlib.contextmanager
def _without_memory(layers: list[keras.layers.BatchNormalization]) -> Iterator[None]:
    """Has the moving statistics be those of the last batch, in what is traced inside."""
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
