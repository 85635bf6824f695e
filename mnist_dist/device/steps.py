"""The work of a device: many training steps, or a whole evaluation, in one call.

Every replica runs the same function on its columns of the batch. A step is one flat
all-reduce of what the replicas add up; after it each applies the same update to its
own copy of the variables, so they stay equal to the last bit.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import keras
import tensorflow as tf

from mnist_dist.device.train_state import TrainState
from mnist_dist.errors import InputError
from mnist_dist.modeling.augmentation import augment
from mnist_dist.modeling.losses import cross_entropy, is_correct
from mnist_dist.modeling.networks import normalize
from mnist_dist.modeling.optimizers import Schedule, UpdateRule
from mnist_dist.modeling.randomness import at_position, make_layers_follow_stream

LOSS_SCALE_PERIOD = 2000  # finite steps after which the loss scale doubles

TrainLoop = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
EvaluateLoop = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
Nest = TypeVar("Nest")  # tensors in lists, tuples and dictionaries


class StepSums(NamedTuple):
    """What the replicas add up in a step: one replica's share, then the sums.

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


def create_train_loop(
    strategy: tf.distribute.Strategy,
    state: TrainState,
    *,
    update_rule: UpdateRule,
    schedule: Schedule,
    global_batch_size: int,
    seed: int,
    with_augmentation: bool = False,
    label_smoothing: float = 0.0,
    clip_global_norm: float = 0.0,
    ema_decay: float = 0.0,
    use_xla: bool = False,
) -> TrainLoop:
    """Builds the function that runs many training steps on the device.

    What it minimises is the mean cross-entropy plus the model's own penalties: of its
    weights, of activities, and what layers add by `add_loss`. Replicas have a penalty
    each, of which the mean counts, as in Keras. So one that is a mean over examples,
    as Keras after 3.12 makes of `activity_regularizer`, is the same on any number of
    replicas; one that is a sum over them shrinks with the number.

    Building it replaces what the model's random layers draw with, for good: the `call`
    of its dropout layers and the `next` of its seed generators follow the stream while
    the loop is traced, and are Keras's own at any other time.

    Args:
      strategy: the strategy in whose scope `state` was built.
      state: the variables to train.
      update_rule: how a variable changes.
      schedule: the learning rate of a step.
      global_batch_size: examples a step, over all replicas.
      seed: of augmentation and dropout.
      with_augmentation: whether images get a random affine change.
      label_smoothing: weight of the uniform distribution in the targets.
      clip_global_norm: largest norm of all gradients together; 0 is no limit.
      ema_decay: of the moving average, when `state` keeps one.
      use_xla: compile the whole loop (one replica) or the two halves of a step.

    Returns:
      `train_loop(images, labels, indices, num_steps, requests)`: images uint8 [n,
      height, width, channels] and labels int32 [n] on every replica, indices int32
      [steps, global_batch_size] into them, num_steps int32 [], how many of their rows
      are taken, from the first. It updates every variable of `state`: parameters,
      statistics, slots and averages where a step was finite; `step`, the sums, the
      streak and the loss scale at each.

      `requests` are this worker's, float32 [2]: more than 0 if the run should stop; how
      many steps the next call should take. They ride in the steps' all-reduce, and
      what all workers agree on is returned in the same form: the sum of the first,
      and the chief's second.

    Raises:
      InputError: the global batch does not divide by the number of replicas.
    """
    num_replicas = strategy.num_replicas_in_sync
    if global_batch_size % num_replicas:
        raise InputError(
            f"--global_batch_size: found {global_batch_size}, expected a multiple of "
            f"the {num_replicas} replicas"
        )
    per_replica_batch = global_batch_size // num_replicas
    make_layers_follow_stream(state.model, seed=seed)
    # XLA cannot compile an all-reduce between logical devices, only what is around.
    compile_loop = use_xla and num_replicas == 1
    compile_half = (
        tf.function(jit_compile=True, autograph=False)
        if use_xla and num_replicas > 1
        else _as_it_is
    )

    @compile_half
    def compute_sums(
        parameters: list[tf.Tensor],
        statistics: list[tf.Tensor],
        images: tf.Tensor,
        labels: tf.Tensor,
        first_position: tf.Tensor,
        loss_scale: tf.Tensor,
    ) -> StepSums:
        """This replica's share of what a step adds up."""
        images = normalize(images)
        if with_augmentation:
            images = augment(images, first_position, seed=seed)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            values = parameters + statistics
            mapping = list(zip(state.keras_weights, values, strict=True))
            with (
                keras.StatelessScope(mapping, collect_losses=True) as scope,
                at_position(first_position, num_examples=per_replica_batch),
            ):
                logits = tf.cast(state.model(images, training=True), tf.float32)
            with keras.StatelessScope(mapping):  # collects none: the weights' alone
                penalties = [*scope.losses, *state.model.losses]
            losses = cross_entropy(logits, labels, label_smoothing=label_smoothing)
            loss_sum = tf.reduce_sum(losses)
            # Divided by the global batch and the replica count, so that the replicas'
            # sum is the mean over the batch plus each penalty's mean over the replicas.
            totals = [tf.reduce_sum(tf.cast(p, tf.float32)) for p in penalties]
            loss = loss_sum / global_batch_size
            loss += tf.add_n(totals or [0.0]) / num_replicas
            scaled_loss = loss * loss_scale
        gradients = tape.gradient(
            scaled_loss, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        moving = state.keras_statistics[: state.num_moving]
        moved = [scope.get_current_value(v) for v in moving]
        means = [tf.cast(v, tf.float32) / num_replicas for v in moved]
        num_correct = tf.reduce_sum(tf.cast(is_correct(logits, labels), tf.float32))
        return StepSums(gradients, means, loss_sum, num_correct)

    @compile_half
    def apply_update(
        parameters: list[tf.Tensor],
        statistics: list[tf.Tensor],
        slots: dict[str, list[tf.Tensor]],
        ema: list[tf.Tensor],
        sums: StepSums,
        step: tf.Tensor,
        loss_scale: tf.Tensor,
    ):
        """The new values of all variables, from the replicas' sums."""
        gradients = [g / loss_scale for g in sums.gradients]
        is_finite = tf.math.is_finite(sums.loss_sum + _probe(gradients))
        if clip_global_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_global_norm)

        def choose(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
            return tf.where(is_finite, new, old)

        learning_rate = schedule(step)
        new_parameters = []
        new_slots: dict[str, list[tf.Tensor]] = {name: [] for name in slots}
        for i, (value, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            old_slots = [slots[name][i] for name in update_rule.slots]
            chosen = [
                choose(new, old)
                for new, old in zip(
                    update_rule.update_slots(gradient, old_slots, learning_rate),
                    old_slots,
                    strict=True,
                )
            ]
            # From the slots that are kept: so XLA needs no copy of the old ones.
            new_value = update_rule.update_value(
                value, gradient, chosen, learning_rate, step
            )
            new_parameters.append(choose(new_value, value))
            for name, slot in zip(update_rule.slots, chosen, strict=True):
                new_slots[name].append(slot)
        new_statistics = [
            choose(_cast(mean, old.dtype), old)
            for mean, old in zip(
                sums.means, statistics[: state.num_moving], strict=True
            )
        ] + statistics[state.num_moving :]
        # Short at first, so that the initial weights are soon forgotten (the
        # `num_updates` rule of tf.train.ExponentialMovingAverage).
        decay = tf.minimum(ema_decay, (1.0 + step) / (10.0 + step))
        share = choose(1.0 - decay, 0.0)
        new_ema = [
            old + share * (tf.cast(new, old.dtype) - old)
            if old.dtype.is_floating
            else tf.cast(new, old.dtype)  # a layer's counter has no average
            for old, new in zip(ema, new_parameters + new_statistics, strict=False)
        ]
        return new_parameters, new_statistics, new_slots, new_ema, is_finite

    def replica_step(
        images: tf.Tensor,
        labels: tf.Tensor,
        batch_indices: tf.Tensor,
        requests: tf.Tensor,
    ) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        replica_id = tf.cast(replica.replica_id_in_sync_group, tf.int32)
        first = replica_id * per_replica_batch
        mine = tf.slice(batch_indices, [first], [per_replica_batch])
        done = tf.identity(state.step)
        first_position = done * global_batch_size + tf.cast(first, tf.int64)
        scale = tf.constant(1.0) if state.loss_scale is None else state.loss_scale[0]

        parameters = [tf.identity(v) for v in state.parameters]
        statistics = [tf.identity(v) for v in state.statistics]
        shares = compute_sums(
            parameters,
            statistics,
            gather_images(images, mine),
            tf.gather(labels, mine),
            first_position,
            scale,
        )
        is_first = tf.cast(replica_id == 0, tf.float32)
        requests *= tf.stack([1.0, is_first])
        sums, agreed = all_reduce_sum(replica, (shares, requests))
        *new_values, is_finite = apply_update(
            parameters,
            statistics,
            {name: [tf.identity(v) for v in vs] for name, vs in state.slots.items()},
            [tf.identity(v) for v in state.ema],
            sums,
            tf.cast(done, tf.float32),
            scale,
        )
        variables = [state.parameters, state.statistics, state.slots, state.ema]
        for variable, value in zip(
            tf.nest.flatten(variables), tf.nest.flatten(new_values), strict=True
        ):
            variable.assign(value)
        state.step.assign_add(1)
        _add_to_sums(state, sums, is_finite, global_batch_size)
        if state.loss_scale is not None:
            state.loss_scale.assign(_next_loss_scale(state.loss_scale, is_finite))
        return agreed

    # Without AutoGraph, as in Keras's own `fit`: it takes seconds to read the code.
    @tf.function(jit_compile=compile_loop, autograph=False)
    def train_loop(
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        num_steps: tf.Tensor,
        requests: tf.Tensor,
    ) -> tf.Tensor:
        def step(row: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            agreed = strategy.run(
                replica_step, args=(images, labels, indices[row], requests)
            )
            return row + 1, strategy.experimental_local_results(agreed)[0]

        _, agreed = tf.while_loop(
            lambda row, _: row < num_steps, step, [tf.constant(0), requests]
        )
        return agreed

    return train_loop


def create_evaluate_loop(
    strategy: tf.distribute.Strategy, state: TrainState, *, use_xla: bool = False
) -> EvaluateLoop:
    """Builds the function that evaluates rows of a padded index matrix.

    Returns:
      `evaluate_loop(images, labels, indices)`: as for training, but indices int32
      [batches, replicas, per-replica batch] where -1 is padding. Gives float64
      sums of `loss`, `correct` and `examples` over every index that is not padding.
    """

    def replica_evaluate(
        images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        mine = indices[:, tf.cast(replica.replica_id_in_sync_group, tf.int32)]
        weights = [tf.identity(v) for v in state.inference_weights()]

        def add_row(row: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            index = mine[row]
            is_example = index >= 0
            index = tf.maximum(index, 0)
            batch = normalize(gather_images(images, index))
            mapping = zip(state.keras_weights, weights, strict=True)
            with keras.StatelessScope(list(mapping)):
                logits = state.model(batch, training=False)
            logits = tf.cast(logits, tf.float32)
            label = tf.gather(labels, index)
            columns = [
                tf.where(is_example, cross_entropy(logits, label), 0.0),
                tf.cast(is_correct(logits, label) & is_example, tf.float32),
                tf.cast(is_example, tf.float32),
            ]
            sums = tf.reduce_sum(tf.stack(columns), axis=1)
            return row + 1, total + tf.cast(sums, tf.float64)

        _, total = tf.while_loop(
            lambda row, _: row < tf.shape(mine)[0],
            add_row,
            [tf.constant(0), tf.zeros([3], tf.float64)],
        )
        return total

    @tf.function(
        jit_compile=use_xla and strategy.num_replicas_in_sync == 1, autograph=False
    )
    def evaluate_loop(
        images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        totals = strategy.run(replica_evaluate, args=(images, labels, indices))
        totals = strategy.reduce(tf.distribute.ReduceOp.SUM, totals, axis=None)
        return dict(
            zip(("loss", "correct", "examples"), tf.unstack(totals), strict=True)
        )

    return evaluate_loop


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


def gather_images(images: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Gathers images [n, height, width, channels] as rows: XLA is slow at blocks."""
    rows = tf.gather(tf.reshape(images, [images.shape[0], -1]), indices)
    return tf.reshape(rows, [indices.shape[0], *images.shape[1:]])


def _as_it_is(function: Callable) -> Callable:
    return function


def _cast(mean: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(mean if dtype.is_floating else tf.round(mean), dtype)


def _probe(tensors: list[tf.Tensor]) -> tf.Tensor:
    """A scalar that is finite if and only if all values are (and do not overflow).

    Sums by matrix products, which XLA does ten times faster than reductions on a CPU,
    and few of them: each is a kernel of its own.
    """

    def row_sums(tensor: tf.Tensor) -> tf.Tensor:
        if tensor.shape.rank < 2:
            return tf.reshape(tensor, [-1])
        width = tensor.shape[-1]
        return tf.reshape(tf.reshape(tensor, [-1, width]) @ tf.ones([width, 1]), [-1])

    sums = tf.concat([row_sums(t) for t in tensors], axis=0)
    return tf.tensordot(sums, tf.ones_like(sums), axes=1)


def _add_to_sums(
    state: TrainState,
    step_sums: StepSums,
    is_finite: tf.Tensor,
    global_batch_size: int,
) -> None:
    # A step that was skipped counts as skipped, and nowhere else.
    counted = tf.cast(is_finite, tf.float64)
    loss_sum = tf.where(is_finite, step_sums.loss_sum, 0.0)
    num_correct = tf.cast(step_sums.num_correct, tf.float64)
    state.sums["loss"].assign_add(tf.cast(loss_sum, tf.float64))
    state.sums["correct"].assign_add(num_correct * counted)
    state.sums["examples"].assign_add(global_batch_size * counted)
    state.sums["nonfinite_steps"].assign_add(1.0 - counted)
    streak = tf.identity(state.nonfinite_streak)
    state.nonfinite_streak.assign(
        tf.where(is_finite, tf.zeros_like(streak), streak + 1)
    )


def _next_loss_scale(loss_scale: tf.Tensor, is_finite: tf.Tensor) -> tf.Tensor:
    scale, good_steps = loss_scale[0], loss_scale[1] + 1.0
    grown = good_steps >= LOSS_SCALE_PERIOD
    after_good = tf.where(
        grown, tf.stack([scale * 2.0, 0.0]), tf.stack([scale, good_steps])
    )
    after_bad = tf.stack([tf.maximum(scale / 2.0, 1.0), 0.0])
    return tf.where(is_finite, after_good, after_bad)
