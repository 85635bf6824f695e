"""How large gradients and updates are: the next step, computed beside the training.

It is a computation of its own and changes no variable, so the training's bits are the
same with it and without: what XLA compiles together depends on all that is in it.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mnist_dist.cluster.membership import Cluster
from mnist_dist.device.all_reduce import all_reduce_sum
from mnist_dist.device.examples import gather_images, rows_for_gather
from mnist_dist.device.step_sums import ComputeSums, StepSums, create_compute_sums
from mnist_dist.device.train_state import TrainState
from mnist_dist.device.update import Update, create_update
from mnist_dist.modeling.optimizers import Schedule, UpdateRule


class StepFigures(NamedTuple):
    """What a step would do from the weights as they are.

    Attributes:
      gradient_norm: of all gradients together, before they are clipped.
      clip_factor: what clipping would multiply them by, at most 1.
      update_ratios: by the path of each weight, the norm of its change divided by its
        own; NaN of a weight that is all zeros.
      worker_seconds: by rank, in which each worker computed its share of the
        gradients, without a wait for the others.
    """

    gradient_norm: float
    clip_factor: float
    update_ratios: dict[str, float]
    worker_seconds: list[float]


# (images, labels, indices), as for the train loop, of which the first row is taken.
StepProbe = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], StepFigures]


def create_step_probe(
    strategy: tf.distribute.Strategy,
    state: TrainState,
    *,
    cluster: Cluster,
    update_rule: UpdateRule,
    schedule: Schedule,
    global_batch_size: int,
    seed: int,
    with_augmentation: bool,
    label_smoothing: float,
    clip_global_norm: float,
    num_microbatches: int,
) -> StepProbe:
    """Builds the function that measures the next step; all workers must call it.

    Args:
      strategy: the strategy in whose scope `state` was built.
      state: the variables, for which a train loop was created before.
      cluster: the workers, and which of them this is.
      update_rule: how a variable changes.
      schedule: the learning rate of a step.
      global_batch_size: examples a step, over all replicas.
      seed: of augmentation and dropout.
      with_augmentation: whether images get a random affine change.
      label_smoothing: weight of the uniform distribution in the targets.
      clip_global_norm: largest norm of all gradients together; 0 is no limit.
      num_microbatches: equal parts that the batch is cut into; 0: one a replica.
    """
    num_parts = num_microbatches or strategy.num_replicas_in_sync
    compute_share = _create_compute_share(
        state,
        create_compute_sums(
            state,
            global_batch_size=global_batch_size,
            num_parts=num_parts,
            seed=seed,
            with_augmentation=with_augmentation,
            label_smoothing=label_smoothing,
        ),
        global_batch_size=global_batch_size,
        num_parts=num_parts,
    )
    measure_step = _create_measure_step(
        state,
        create_update(
            update_rule,
            schedule,
            num_moving=state.num_moving,
            clip_global_norm=clip_global_norm,
            ema_decay=0.0,
        ),
        replicas_per_worker=strategy.num_replicas_in_sync // cluster.num_workers,
    )

    @tf.function(autograph=False)
    def compute_shares(
        images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> StepSums:
        return strategy.run(compute_share, args=(images, labels, indices[0]))

    @tf.function(autograph=False)
    def measure(shares: StepSums, seconds: tf.Tensor) -> tf.Tensor:
        found = strategy.run(measure_step, args=(shares, seconds))
        return strategy.experimental_local_results(found)[0]

    def probe(images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor) -> StepFigures:
        if not compute_shares.experimental_get_tracing_count():
            compute_shares(images, labels, indices)  # to trace takes longer
        began = time.perf_counter()
        shares = compute_shares(images, labels, indices)
        for loss in strategy.experimental_local_results(shares.loss_sum):
            loss.numpy()  # waits for the device
        seconds = np.zeros(cluster.num_workers, np.float32)
        seconds[cluster.rank] = time.perf_counter() - began
        found = measure(shares, tf.constant(seconds)).numpy()
        worker_seconds, (norm, *ratios) = np.split(found, [cluster.num_workers])
        clips = clip_global_norm > 0 and norm > clip_global_norm
        return StepFigures(
            gradient_norm=float(norm),
            clip_factor=clip_global_norm / float(norm) if clips else 1.0,
            update_ratios=dict(
                zip(state.weight_paths, map(float, ratios), strict=False)
            ),
            worker_seconds=worker_seconds.tolist(),
        )

    return probe


def _create_compute_share(
    state: TrainState,
    compute_sums: ComputeSums,
    *,
    global_batch_size: int,
    num_parts: int,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], StepSums]:
    """Builds what adds up the parts of one replica."""
    part_size = global_batch_size // num_parts

    def compute_share(
        images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> StepSums:
        replica = tf.distribute.get_replica_context()
        own_parts = num_parts // replica.num_replicas_in_sync
        number = own_parts * tf.cast(replica.replica_id_in_sync_group, tf.int32)
        rows, labels = rows_for_gather(images, labels, is_compiled=False)
        values = state.read_values()
        scale = _loss_scale(state)

        def compute_part(number: tf.Tensor) -> StepSums:
            first = number * part_size
            part = tf.cast(tf.slice(indices, [first], [part_size]), tf.int64)
            return compute_sums(
                values.parameters,
                values.statistics,
                gather_images(rows, part, image_shape=tuple(images.shape[1:])),
                tf.gather(labels, part),
                state.step * global_batch_size + tf.cast(first, tf.int64),
                scale,
            )

        sums = compute_part(number)
        for more in range(1, own_parts):
            # One after another, in the memory of one.
            with tf.control_dependencies(tf.nest.flatten(sums)):
                part_sums = compute_part(number + more)
            sums = tf.nest.map_structure(tf.add, sums, part_sums)
        return sums

    return compute_share


def _create_measure_step(
    state: TrainState, update: Update, *, replicas_per_worker: int
) -> Callable[[StepSums, tf.Tensor], tf.Tensor]:
    """Builds what puts the shares together, and measures the step they would make."""

    def measure_step(share: StepSums, seconds: tf.Tensor) -> tf.Tensor:
        """Returns seconds of each worker, norm of the gradients, ratios."""
        replica = tf.distribute.get_replica_context()
        number = replica.replica_id_in_sync_group % replicas_per_worker
        seconds *= tf.cast(number == 0, tf.float32)  # once a worker
        sums, seconds = all_reduce_sum(replica, (share, seconds))
        scale = _loss_scale(state)
        norm = tf.linalg.global_norm(sums.gradients) / scale
        values = state.read_values()._replace(ema=[])
        step = tf.cast(tf.identity(state.step), tf.float32)
        new_values, _ = update(values, sums, step, scale)
        ratios = [
            tf.norm(new - old) / tf.norm(old)
            for new, old in zip(new_values.parameters, values.parameters, strict=True)
        ]
        return tf.concat([seconds, tf.stack([norm, *ratios])], axis=0)

    return measure_step


def _loss_scale(state: TrainState) -> tf.Tensor:
    return tf.constant(1.0) if state.loss_scale is None else state.loss_scale[0]
