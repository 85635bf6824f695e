"""Update rules and learning-rate schedules, as pure functions of tensors.

A rule maps a variable's gradient and slots to its new slots, and these to its new
value; it owns no variables, so the same arithmetic runs under any strategy, inside
XLA, and in a test against `keras.optimizers`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from mnist_dist.errors import InputError

Schedule = Callable[[tf.Tensor], tf.Tensor]

# Of Adam: the decays of its two means, and what is added to the root of the second.
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


class UpdateRule(NamedTuple):
    """How one variable changes in a step.

    Attributes:
      slots: names of the float32 variables, shaped like the value and starting at
        zero, that the rule keeps for each trained variable.
      update_slots: `(gradient, slots, learning_rate) -> slots`.
      update_value: `(value, gradient, slots, learning_rate, step) -> value`, with the
        updated slots; `step` is the float32 number of updates done before this one.
    """

    slots: tuple[str, ...]
    update_slots: Callable[[tf.Tensor, Sequence[tf.Tensor], tf.Tensor], list[tf.Tensor]]
    update_value: Callable[
        [tf.Tensor, tf.Tensor, Sequence[tf.Tensor], tf.Tensor, tf.Tensor], tf.Tensor
    ]


def create_update_rule(
    name: str,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> UpdateRule:
    """Builds the rule `sgd`, `adam` or `adamw`.

    Args:
      name: which rule.
      momentum: of `sgd`; 0 keeps no slot.
      nesterov: Nesterov's form of the momentum.
      weight_decay: decoupled decay of `sgd` and `adamw`, times the learning rate;
        applies to matrices and kernels, not to biases and scales (rank 0 and 1).

    Raises:
      InputError: unknown name, or a weight decay for plain `adam`.

    Source: Kingma & Ba, "Adam" (2015); Loshchilov & Hutter, "Decoupled Weight Decay
    Regularization" (2019); Sutskever et al. (2013) for Nesterov's momentum.
    """

    def decay(value: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        if weight_decay == 0.0 or value.shape.rank < 2:
            return value
        return value - value * (learning_rate * weight_decay)

    def sgd_slots(gradient, slots, learning_rate):
        return [momentum * v - learning_rate * gradient for v in slots]

    def sgd_value(value, gradient, slots, learning_rate, step):
        del step
        value = decay(value, learning_rate)
        if not slots:
            return value - learning_rate * gradient
        if nesterov:
            return value + momentum * slots[0] - learning_rate * gradient
        return value + slots[0]

    def adam_slots(gradient, slots, learning_rate):
        del learning_rate
        mean, square = slots
        return [
            mean + (gradient - mean) * (1.0 - BETA_1),
            square + (tf.square(gradient) - square) * (1.0 - BETA_2),
        ]

    def adam_value(value, gradient, slots, learning_rate, step):
        del gradient
        mean, square = slots
        value = decay(value, learning_rate)
        correction = tf.sqrt(1.0 - BETA_2 ** (step + 1.0)) / (
            1.0 - BETA_1 ** (step + 1.0)
        )
        return value - learning_rate * correction * mean / (tf.sqrt(square) + EPSILON)

    if name == "sgd":
        return UpdateRule(("velocity",) if momentum else (), sgd_slots, sgd_value)
    if name == "adam" and weight_decay:
        raise InputError(
            f"--weight_decay: found {weight_decay} with --optimizer=adam, expected 0; "
            "adamw is Adam with weight decay"
        )
    if name in ("adam", "adamw"):
        return UpdateRule(("mean", "square"), adam_slots, adam_value)
    raise InputError(f"--optimizer: found {name!r}, expected sgd, adam or adamw")


def create_schedule(
    name: str, *, learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> Schedule:
    """Builds the function from a step to its learning rate.

    Args:
      name: `constant`, `cosine` (to 0 at the last step) or `one_cycle` (cosine from
        a 25th of the rate up to it, then down to a 10,000th of where it began).
      learning_rate: the peak.
      total_steps: length of the run.
      warmup_steps: the first steps rise in a straight line from 0; for `one_cycle`,
        the length of the rise (0: 30 % of the run).

    Returns:
      A function of the float32 number of steps done, giving a float32 scalar.

    Raises:
      InputError: unknown name, or a warm-up longer than the run.

    Source: Loshchilov & Hutter, "SGDR" (2017); Smith & Topin, "Super-Convergence"
    (2018), with the factors of PyTorch's `OneCycleLR`.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise InputError(
            f"--warmup_steps: found {warmup_steps}, expected 0 to the run's "
            f"{total_steps} steps"
        )

    def between(start: float, end: float, progress: tf.Tensor) -> tf.Tensor:
        progress = tf.clip_by_value(progress, 0.0, 1.0)
        return end + (start - end) * 0.5 * (1.0 + tf.cos(math.pi * progress))

    def warm_up(step: tf.Tensor, then: tf.Tensor) -> tf.Tensor:
        if not warmup_steps:
            return then
        return tf.where(
            step < warmup_steps, learning_rate * (step + 1.0) / warmup_steps, then
        )

    def constant(step: tf.Tensor) -> tf.Tensor:
        return warm_up(step, tf.constant(learning_rate, tf.float32))

    def cosine(step: tf.Tensor) -> tf.Tensor:
        length = max(total_steps - warmup_steps, 1)
        return warm_up(
            step, between(learning_rate, 0.0, (step - warmup_steps) / length)
        )

    def one_cycle(step: tf.Tensor) -> tf.Tensor:
        rise = float(warmup_steps or 0.3 * total_steps)
        fall = max(total_steps - 1 - rise, 1.0)
        start = learning_rate / 25.0
        return tf.where(
            step < rise,
            between(start, learning_rate, step / rise),
            between(learning_rate, start / 1e4, (step - rise) / fall),
        )

    schedules = {"constant": constant, "cosine": cosine, "one_cycle": one_cycle}
    if name not in schedules:
        raise InputError(
            f"--lr_schedule: found {name!r}, expected {', '.join(schedules)}"
        )
    return schedules[name]
