"""The update: from a step's sums to the new values of all variables.

It is a function of tensors. Each replica computes it from the same sums, so the copies
of a variable stay equal to the last bit.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from mnist_dist.device.step_sums import StepSums
from mnist_dist.device.train_state import Values
from mnist_dist.modeling.optimizers import Schedule, UpdateRule

LOSS_SCALE_PERIOD = 2000  # finite steps after which the loss scale doubles

# (values, sums, step, loss_scale) -> (new values, whether the step was finite).
Update = Callable[[Values, StepSums, tf.Tensor, tf.Tensor], tuple[Values, tf.Tensor]]


def create_update(
    update_rule: UpdateRule,
    schedule: Schedule,
    *,
    num_moving: int,
    clip_global_norm: float,
    ema_decay: float,
) -> Update:
    """Builds the function that computes the new values of all variables.

    A step whose loss or gradients are not finite changes nothing.

    Args:
      update_rule: how a parameter changes.
      schedule: the learning rate of a step.
      num_moving: how many of the statistics, from the first, the forward pass moves.
      clip_global_norm: largest norm of all gradients together; 0 is no limit.
      ema_decay: of the moving average, when the values have one.

    Returns:
      `update(values, sums, step, loss_scale)`: the values before the step; the sums
      over all its parts; how many steps were done before, float32 []; what the loss
      was multiplied by, float32 []. Returns the values after it, and whether the step
      was finite, bool [].
    """

    def update(
        values: Values, sums: StepSums, step: tf.Tensor, loss_scale: tf.Tensor
    ) -> tuple[Values, tf.Tensor]:
        gradients = [g / loss_scale for g in sums.gradients]
        is_finite = tf.math.is_finite(sums.loss_sum + _probe(gradients))
        if clip_global_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_global_norm)
        parameters, slots = _update_parameters(
            update_rule,
            values,
            gradients,
            learning_rate=schedule(step),
            step=step,
            is_finite=is_finite,
        )
        statistics = [
            tf.where(is_finite, _cast(mean, old.dtype), old)
            for mean, old in zip(
                sums.means, values.statistics[:num_moving], strict=True
            )
        ] + values.statistics[num_moving:]
        ema = _update_average(
            values.ema,
            parameters + statistics,
            ema_decay=ema_decay,
            step=step,
            is_finite=is_finite,
        )
        return Values(parameters, statistics, slots, ema), is_finite

    return update


def next_loss_scale(loss_scale: tf.Tensor, is_finite: tf.Tensor) -> tf.Tensor:
    """Returns the loss scale of the next step.

    It doubles after `LOSS_SCALE_PERIOD` finite steps and halves at once.

    Args:
      loss_scale: float32 [scale, finite steps since it changed].
      is_finite: whether this step was finite, bool [].

    Source: Micikevicius et al., "Mixed Precision Training" (2018).
    """
    scale, good_steps = loss_scale[0], loss_scale[1] + 1.0
    grown = good_steps >= LOSS_SCALE_PERIOD
    after_good = tf.where(
        grown, tf.stack([scale * 2.0, 0.0]), tf.stack([scale, good_steps])
    )
    after_bad = tf.stack([tf.maximum(scale / 2.0, 1.0), 0.0])
    return tf.where(is_finite, after_good, after_bad)


def _update_parameters(
    update_rule: UpdateRule,
    values: Values,
    gradients: Sequence[tf.Tensor],
    *,
    learning_rate: tf.Tensor,
    step: tf.Tensor,
    is_finite: tf.Tensor,
) -> tuple[list[tf.Tensor], dict[str, list[tf.Tensor]]]:
    """Returns the new parameters, and their new slots by name."""
    parameters = []
    slots: dict[str, list[tf.Tensor]] = {name: [] for name in values.slots}
    for i, (value, gradient) in enumerate(
        zip(values.parameters, gradients, strict=True)
    ):
        old_slots = [values.slots[name][i] for name in update_rule.slots]
        new_slots = update_rule.update_slots(gradient, old_slots, learning_rate)
        kept = [
            tf.where(is_finite, new, old)
            for new, old in zip(new_slots, old_slots, strict=True)
        ]
        # Computed from the slots that are kept, so XLA needs no copy of the old ones.
        new_value = update_rule.update_value(value, gradient, kept, learning_rate, step)
        parameters.append(tf.where(is_finite, new_value, value))
        for name, slot in zip(update_rule.slots, kept, strict=True):
            slots[name].append(slot)
    return parameters, slots


def _update_average(
    ema: Sequence[tf.Tensor],
    weights: Sequence[tf.Tensor],
    *,
    ema_decay: float,
    step: tf.Tensor,
    is_finite: tf.Tensor,
) -> list[tf.Tensor]:
    """Returns the new moving average, when there is one.

    The average is short at first, so that the initial weights are soon forgotten (the
    `num_updates` rule of tf.train.ExponentialMovingAverage).
    """
    decay = tf.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    share = tf.where(is_finite, 1.0 - decay, 0.0)
    return [
        old + share * (tf.cast(new, old.dtype) - old)
        if old.dtype.is_floating
        else tf.cast(new, old.dtype)  # a layer's counter has no average
        for old, new in zip(ema, weights, strict=False)
    ]


def _cast(mean: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(mean if dtype.is_floating else tf.round(mean), dtype)


def _probe(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Returns a scalar that is finite if and only if all values are.

    It sums by matrix products, which XLA does ten times faster than reductions on a
    CPU, and in as few of them as possible, since each is a kernel of its own. A sum
    that overflows counts as not finite.
    """

    def row_sums(tensor: tf.Tensor) -> tf.Tensor:
        if tensor.shape.rank < 2:
            return tf.reshape(tensor, [-1])
        width = tensor.shape[-1]
        return tf.reshape(tf.reshape(tensor, [-1, width]) @ tf.ones([width, 1]), [-1])

    sums = tf.concat([row_sums(t) for t in tensors], axis=0)
    return tf.tensordot(sums, tf.ones_like(sums), axes=1)
