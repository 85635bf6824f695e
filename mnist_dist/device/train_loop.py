"""The training loop of a device: many steps in one call.

Every replica runs the same step on its part of the batch. What the replicas compute is
added up in one flat all-reduce; after it each applies the same update to its own copy
of the variables, so the copies stay equal to the last bit.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from mnist_dist.device.all_reduce import all_reduce_sum
from mnist_dist.device.examples import gather_images, index_dtype, rows_for_gather
from mnist_dist.device.step_sums import ComputeSums, StepSums, create_compute_sums
from mnist_dist.device.train_state import TrainState
from mnist_dist.device.update import Update, create_update, next_loss_scale
from mnist_dist.errors import InputError
from mnist_dist.modeling.optimizers import Schedule, UpdateRule
from mnist_dist.modeling.randomness import make_layers_follow_stream

TrainLoop = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


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

    It minimises the mean cross-entropy plus the model's own penalties: for weights, for
    activities, and what layers add by `add_loss`. Each replica computes a penalty of
    its own; their mean counts, as in Keras. A penalty that is a mean over examples, as
    Keras after 3.12 makes of `activity_regularizer`, is the same on any number of
    replicas; one that is a sum over examples shrinks with the number.

    Building it replaces for good what the model's random layers draw with: the `call`
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
      height, width, channels] and labels int64 [n] on every replica, indices int64
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
    make_layers_follow_stream(state.model, seed=seed)
    compute_sums = create_compute_sums(
        state,
        global_batch_size=global_batch_size,
        num_parts=num_replicas,
        seed=seed,
        with_augmentation=with_augmentation,
        label_smoothing=label_smoothing,
    )
    update = create_update(
        update_rule,
        schedule,
        num_moving=state.num_moving,
        clip_global_norm=clip_global_norm,
        ema_decay=ema_decay,
    )
    # XLA cannot compile an all-reduce between logical devices, only what is around.
    compile_loop = use_xla and num_replicas == 1
    if use_xla and not compile_loop:
        compute_sums, update = _compile(compute_sums), _compile(update)
    replica_step = _create_replica_step(
        state,
        compute_sums,
        update,
        global_batch_size=global_batch_size,
        label_dtype=index_dtype(is_compiled=use_xla),
    )

    # Without AutoGraph, as in Keras's own `fit`: it takes seconds to read the code.
    @tf.function(jit_compile=compile_loop, autograph=False)
    def train_loop(
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        num_steps: tf.Tensor,
        requests: tf.Tensor,
    ) -> tf.Tensor:
        image_shape = strategy.experimental_local_results(images)[0].shape[1:]
        to_rows = functools.partial(rows_for_gather, is_compiled=compile_loop)
        rows, labels = strategy.run(to_rows, args=(images, labels))
        indices = tf.cast(indices, index_dtype(is_compiled=compile_loop))

        def step(row: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            agreed = strategy.run(
                replica_step,
                args=(rows, labels, indices[row], requests),
                kwargs={"image_shape": tuple(image_shape)},
            )
            return row + 1, strategy.experimental_local_results(agreed)[0]

        _, agreed = tf.while_loop(
            lambda row, _: row < num_steps, step, [tf.constant(0), requests]
        )
        return agreed

    return train_loop


def _create_replica_step(
    state: TrainState,
    compute_sums: ComputeSums,
    update: Update,
    *,
    global_batch_size: int,
    label_dtype: tf.DType,
) -> Callable[..., tf.Tensor]:
    """Builds what each replica does in a step."""

    def replica_step(
        rows: tf.Tensor,
        labels: tf.Tensor,
        batch_indices: tf.Tensor,
        requests: tf.Tensor,
        *,
        image_shape: tuple[int, int, int],
    ) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        per_replica_batch = global_batch_size // replica.num_replicas_in_sync
        replica_id = tf.cast(replica.replica_id_in_sync_group, tf.int32)
        first = replica_id * per_replica_batch
        mine = tf.slice(batch_indices, [first], [per_replica_batch])
        step = tf.identity(state.step)
        scale = tf.constant(1.0) if state.loss_scale is None else state.loss_scale[0]

        values = state.read_values()
        share = compute_sums(
            values.parameters,
            values.statistics,
            gather_images(rows, mine, image_shape=image_shape),
            tf.cast(tf.gather(labels, mine), label_dtype),
            step * global_batch_size + tf.cast(first, tf.int64),
            scale,
        )
        is_first = tf.cast(replica_id == 0, tf.float32)
        requests *= tf.stack([1.0, is_first])
        sums, agreed = all_reduce_sum(replica, (share, requests))
        new_values, is_finite = update(values, sums, tf.cast(step, tf.float32), scale)
        state.assign_values(new_values)
        state.step.assign_add(1)
        _count_step(state, sums, is_finite, global_batch_size=global_batch_size)
        if state.loss_scale is not None:
            state.loss_scale.assign(next_loss_scale(state.loss_scale, is_finite))
        return agreed

    return replica_step


def _count_step(
    state: TrainState,
    step_sums: StepSums,
    is_finite: tf.Tensor,
    *,
    global_batch_size: int,
) -> None:
    """Adds a step to the training summary; one that was skipped counts as skipped."""
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


def _compile(function: Callable) -> Callable:
    return tf.function(function, jit_compile=True, autograph=False)
