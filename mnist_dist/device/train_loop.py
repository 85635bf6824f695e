"""The training loop of a device: many steps in one call.

Every replica runs the same step on its part of the batch, or on several parts one after
another. Gradients and statistics are added up over all replicas. Then each replica
applies the same update to its own copy of the variables, so the copies stay equal to the
last bit.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import tensorflow as tf

from mnist_dist.device.examples import index_dtype, rows_for_gather
from mnist_dist.device.microbatches import check_batch, check_nothing_synchronizes
from mnist_dist.device.step_count import create_count_step
from mnist_dist.device.step_sums import create_compute_sums, sums_like
from mnist_dist.device.sum_of_parts import OrderedSum, add_up_by_all_reduce
from mnist_dist.device.train_state import TrainState
from mnist_dist.device.train_step import create_replica_step
from mnist_dist.device.update import create_update
from mnist_dist.modeling.optimizers import Schedule, UpdateRule
from mnist_dist.modeling.randomness import make_layers_follow_stream


class TrainLoop(Protocol):
    """Many training steps in one call."""

    def __call__(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        num_steps: tf.Tensor,
        control: tf.Tensor,
    ) -> tf.Tensor:
        """Trains, and updates every variable of the state.

        Parameters, statistics, slots and averages change where a step was finite;
        `step`, the sums, the streak and the loss scale at each.

        Args:
          images: uint8 [n, height, width, channels], on every replica.
          labels: int64 [n], on every replica.
          indices: int64 [steps, global_batch_size] into them.
          num_steps: int32 [], how many rows of the indices are taken, from the first.
          control: this worker's, float32 [2]: more than 0 if the run should stop; how
            many steps the next call should take. They ride in the steps' all-reduce.

        Returns:
          What all workers agree on, in the form of `control`: the sum of the first
          values, and the chief's second.
        """


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
    num_microbatches: int = 0,
) -> TrainLoop:
    """Builds the function that runs many training steps on the device.

    It minimises the mean cross-entropy plus the model's own penalties, each computed for
    every part of the batch; their mean counts, as `create_compute_sums` says.

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
      num_microbatches: equal parts that the batch is cut into, in the order of the
        stream. A replica computes its share of them one after another, in the memory
        of one. The results are the same to the last bit on any number of replicas that
        divides this one, on devices of one kind in processes with as many threads. 0:
        one part a replica, added up in the order of the all-reduce.

    Returns:
      The loop; it can be traced as a `tf.function`.

    Raises:
      InputError: the global batch does not divide by the number of replicas, the
        microbatches fit neither, or a layer of the model synchronizes replicas.
    """
    num_replicas = strategy.num_replicas_in_sync
    check_batch(
        global_batch_size=global_batch_size,
        num_microbatches=num_microbatches,
        num_replicas=num_replicas,
    )
    if num_microbatches:
        check_nothing_synchronizes(state.model)
    num_parts = num_microbatches or num_replicas
    make_layers_follow_stream(state.model, seed=seed)
    compute_sums = create_compute_sums(
        state,
        global_batch_size=global_batch_size,
        num_parts=num_parts,
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
    count_step = create_count_step(global_batch_size=global_batch_size)
    # XLA cannot compile an all-reduce between logical devices, only what is around it.
    # With microbatches it compiles the same functions on any number of replicas: the
    # bits depend on what it compiles together.
    compile_loop = use_xla and num_replicas == 1 and not num_microbatches
    if use_xla and not compile_loop:
        compute_sums, update = _compile(compute_sums), _compile(update)
        count_step = _compile(count_step)
    replica_step = create_replica_step(
        state,
        compute_sums,
        update,
        count_step,
        add_up=OrderedSum(
            num_microbatches=num_microbatches,
            num_replicas=num_replicas,
            like=sums_like(state),
        )
        if num_microbatches
        else add_up_by_all_reduce,
        global_batch_size=global_batch_size,
        part_size=global_batch_size // num_parts,
        label_dtype=index_dtype(is_compiled=use_xla and not num_microbatches),
    )
    return _repeat(replica_step, strategy, compile_loop=compile_loop)


def _repeat(
    replica_step: Callable[..., tf.Tensor],
    strategy: tf.distribute.Strategy,
    *,
    compile_loop: bool,
) -> TrainLoop:
    """Builds the loop that runs a step of all replicas many times."""

    # Without AutoGraph, as in Keras's own `fit`: it takes seconds to read the code.
    @tf.function(jit_compile=compile_loop, autograph=False)
    def train_loop(
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        num_steps: tf.Tensor,
        control: tf.Tensor,
    ) -> tf.Tensor:
        image_shape = strategy.experimental_local_results(images)[0].shape[1:]
        to_rows = functools.partial(rows_for_gather, is_compiled=compile_loop)
        rows, labels = strategy.run(to_rows, args=(images, labels))
        indices = tf.cast(indices, index_dtype(is_compiled=compile_loop))

        def step(row: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            agreed = strategy.run(
                replica_step,
                args=(rows, labels, indices[row], control),
                kwargs={"image_shape": tuple(image_shape)},
            )
            return row + 1, strategy.experimental_local_results(agreed)[0]

        _, agreed = tf.while_loop(
            lambda row, _: row < num_steps, step, [tf.constant(0), control]
        )
        return agreed

    return train_loop


def _compile(function: Callable) -> Callable:
    return tf.function(function, jit_compile=True, autograph=False)
