"""A step on one replica: its parts of the batch, the sum over all, the update."""

from collections.abc import Callable

import tensorflow as tf

from mnist_dist.device.examples import gather_images
from mnist_dist.device.step_count import CountStep, count_in_state
from mnist_dist.device.step_sums import ComputeSums, StepSums
from mnist_dist.device.sum_of_parts import AddUp
from mnist_dist.device.train_state import TrainState
from mnist_dist.device.update import Update


def create_replica_step(
    state: TrainState,
    compute_sums: ComputeSums,
    update: Update,
    count_step: CountStep,
    *,
    add_up: AddUp,
    global_batch_size: int,
    part_size: int,
    label_dtype: tf.DType,
) -> Callable[..., tf.Tensor]:
    """Builds what each replica does in a step.

    Args:
      state: the variables to train.
      compute_sums: computes what one part of the batch adds to the step.
      update: computes the new values of the variables.
      count_step: computes the new values of what a run keeps count of.
      add_up: has a replica compute its parts, and adds up those of all replicas.
      global_batch_size: examples a step, over all replicas.
      part_size: examples in a part.
      label_dtype: of the labels that `compute_sums` takes.

    Returns:
      `replica_step(rows, labels, batch_indices, control, image_shape=...)`: rows and
      labels as `rows_for_gather` returns them; the indices of the whole batch, [batch];
      this worker's control values, float32 [2]. Returns those of all workers.
    """

    def replica_step(
        rows: tf.Tensor,
        labels: tf.Tensor,
        batch_indices: tf.Tensor,
        control: tf.Tensor,
        *,
        image_shape: tuple[int, int, int],
    ) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        replica_id = tf.cast(replica.replica_id_in_sync_group, tf.int32)
        step = tf.identity(state.step)
        scale = tf.constant(1.0) if state.loss_scale is None else state.loss_scale[0]

        values = state.read_values()

        def compute_part(number: tf.Tensor) -> StepSums:
            first = number * part_size
            part = tf.slice(batch_indices, [first], [part_size])
            return compute_sums(
                values.parameters,
                values.statistics,
                gather_images(rows, part, image_shape=image_shape),
                tf.cast(tf.gather(labels, part), label_dtype),
                step * global_batch_size + tf.cast(first, tf.int64),
                scale,
            )

        is_first = tf.cast(replica_id == 0, tf.float32)
        control *= tf.stack([1.0, is_first])
        sums, agreed = add_up(replica, compute_part, control)
        new_values, is_finite = update(values, sums, tf.cast(step, tf.float32), scale)
        state.assign_values(new_values)
        count_in_state(count_step, state, sums, is_finite)
        return agreed

    return replica_step
