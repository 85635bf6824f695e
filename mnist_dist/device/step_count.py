"""What a run keeps count of in each step: its training summary, skipped steps, loss scale.

A function of tensors, so that XLA can compile all of it to one kernel.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from mnist_dist.device.step_sums import StepSums
from mnist_dist.device.train_state import TrainState
from mnist_dist.device.update import next_loss_scale


class Counters(NamedTuple):
    """Tensors, each as `TrainState` describes its variable."""

    step: tf.Tensor
    sums: dict[str, tf.Tensor]
    nonfinite_streak: tf.Tensor
    loss_scale: tf.Tensor | None


# (counters, the loss and the correct answers of the whole batch, whether the step was
# finite) -> counters after the step.
CountStep = Callable[[Counters, tf.Tensor, tf.Tensor, tf.Tensor], Counters]


def create_count_step(*, global_batch_size: int) -> CountStep:
    """Builds the function that counts a step; one that was skipped counts as skipped."""

    def count_step(
        counters: Counters,
        loss_sum: tf.Tensor,
        num_correct: tf.Tensor,
        is_finite: tf.Tensor,
    ) -> Counters:
        counted = tf.cast(is_finite, tf.float64)
        added = {
            "loss": tf.cast(tf.where(is_finite, loss_sum, 0.0), tf.float64),
            "correct": tf.cast(num_correct, tf.float64) * counted,
            "examples": global_batch_size * counted,
            "nonfinite_steps": 1.0 - counted,
        }
        streak, scale = counters.nonfinite_streak, counters.loss_scale
        return Counters(
            step=counters.step + 1,
            sums={name: value + added[name] for name, value in counters.sums.items()},
            nonfinite_streak=tf.where(is_finite, tf.zeros_like(streak), streak + 1),
            loss_scale=None if scale is None else next_loss_scale(scale, is_finite),
        )

    return count_step


def count_in_state(
    count_step: CountStep,
    state: TrainState,
    step_sums: StepSums,
    is_finite: tf.Tensor,
) -> None:
    """Counts a step in this replica's copies of the variables, in a graph."""
    variables = Counters(
        state.step, state.sums, state.nonfinite_streak, state.loss_scale
    )
    counted = count_step(
        tf.nest.map_structure(
            lambda v: None if v is None else tf.identity(v), variables
        ),
        step_sums.loss_sum,
        step_sums.num_correct,
        is_finite,
    )
    for variable, value in zip(
        tf.nest.flatten(variables), tf.nest.flatten(counted), strict=True
    ):
        if variable is not None:
            variable.assign(value)
