"""What a run computes, on what and with what: built from the options, before it begins."""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from mnist_dist.cluster.membership import Cluster
from mnist_dist.data import Dataset
from mnist_dist.device import xla
from mnist_dist.device.batch_statistics import (
    RenewStatistics,
    create_renew_statistics,
)
from mnist_dist.device.evaluate_loop import EvaluateLoop, create_evaluate_loop
from mnist_dist.device.feed import DeviceSplit, fits_on_device
from mnist_dist.device.progress_watch import ProgressWatch
from mnist_dist.device.step_probe import StepProbe, create_step_probe
from mnist_dist.device.train_loop import TrainLoop, create_train_loop
from mnist_dist.device.train_state import TrainState
from mnist_dist.modeling import networks, optimizers
from mnist_dist.modeling.optimizers import Schedule
from mnist_dist.run.plan import RunPlan
from mnist_dist.training.answers import compute_logits
from mnist_dist.training.batches import Batches
from mnist_dist.training.control import Control
from mnist_dist.training.host_loop import HostLoop
from mnist_dist.training.options import TrainingOptions
from mnist_dist.training.profile import StepProfile


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run computes.

    Attributes:
      dataset: what it trains and evaluates on.
      plan: how long it is, and what happens when.
      strategy: the devices of all workers.
      state: the model, and every variable of the run.
      schedule: the learning rate of a step.
      train_loop: many training steps in one call.
      step_probe: measures the next step for TensorBoard; None: it is not shown.
      evaluate_loop: a part of an evaluation in one call.
      renew_statistics: computes BatchNormalization's statistics anew; None: the training
        alone moves them.
      use_xla: whether XLA compiles the loops.
      is_resident: whether the data lie on the devices.
    """

    dataset: Dataset
    plan: RunPlan
    strategy: tf.distribute.Strategy
    state: TrainState
    schedule: Schedule
    train_loop: TrainLoop
    step_probe: StepProbe | None
    evaluate_loop: EvaluateLoop
    renew_statistics: RenewStatistics | None
    use_xla: bool
    is_resident: bool


def create_job(
    options: TrainingOptions,
    plan: RunPlan,
    *,
    dataset: Dataset,
    strategy: tf.distribute.Strategy,
    cluster: Cluster,
) -> Job:
    """Builds the model, its variables and the loops under a strategy.

    Raises:
      InputError: the model cannot be built, does not fit the data, or cannot be trained
        as the options say; or the data do not fit the devices.
    """
    update_rule = optimizers.create_update_rule(
        options.optimizer, **options.pick("momentum nesterov weight_decay")
    )
    schedule = optimizers.create_schedule(
        options.lr_schedule,
        total_steps=plan.total_steps,
        **options.pick("learning_rate warmup_steps"),
    )
    with strategy.scope():
        model = networks.create_model(
            options.model,
            image_shape=dataset.image_shape,
            num_classes=dataset.num_classes,
            **options.pick("seed dropout dtype"),
        )
        networks.freeze_layers(model, options.freeze)
        state = TrainState(
            model,
            slot_names=update_rule.slots,
            with_ema=options.ema_decay > 0,
            with_loss_scale=options.dtype == "float16",
        )
    step = {
        "update_rule": update_rule,
        "schedule": schedule,
        "with_augmentation": options.has_augmentation,
        **options.pick("global_batch_size seed label_smoothing"),
        **options.pick("clip_global_norm num_microbatches"),
    }
    use_xla = xla.should_compile(
        options.enable_xla, model, strategy, image_shape=dataset.image_shape
    )
    return Job(
        dataset=dataset,
        plan=plan,
        strategy=strategy,
        state=state,
        schedule=schedule,
        train_loop=create_train_loop(
            strategy,
            state,
            use_xla=use_xla,
            **options.pick("ema_decay"),
            **step,
        ),
        step_probe=create_step_probe(strategy, state, cluster=cluster, **step)
        if options.summary_detail == "full"
        else None,
        evaluate_loop=create_evaluate_loop(
            strategy,
            state,
            use_xla=use_xla,
            on_any_replicas=options.num_microbatches > 0,
        ),
        renew_statistics=create_renew_statistics(
            strategy,
            state,
            part_size=options.global_batch_size
            // (options.num_microbatches or strategy.num_replicas_in_sync),
        )
        if options.statistics_batches
        else None,
        use_xla=use_xla,
        is_resident=fits_on_device(
            options.data_on_device, num_bytes=dataset.num_bytes, strategy=strategy
        ),
    )


def create_host_loop(
    job: Job,
    *,
    global_batch_size: int,
    seed: int,
    statistics_batches: int,
    cluster: Cluster,
    with_logits: bool,
    watch: ProgressWatch,
    profile_dir: str | None,
    is_stop_requested: Callable[[], bool],
) -> HostLoop:
    """Puts the data of a job on the devices, and builds the loop that trains.

    Args:
      job: what is computed.
      global_batch_size: examples a step, over all replicas.
      seed: of the order of the examples.
      statistics_batches: over which BatchNormalization's statistics are computed anew
        before an evaluation.
      cluster: the workers, and which of them this is.
      with_logits: whether the recorder gets the logits of each evaluation.
      watch: ends this worker if the run makes no progress.
      profile_dir: where the profile of the plan goes; None: this worker writes none.
      is_stop_requested: whether this worker was asked to stop.
    """
    plan = job.plan
    train, evaluation = (
        DeviceSplit(job.strategy, split, is_resident=job.is_resident)
        for split in (job.dataset.train, job.dataset.evaluation)
    )
    batches = Batches(
        train,
        global_batch_size=global_batch_size,
        seed=seed,
        steps_per_loop=plan.steps_per_loop,
    )
    return HostLoop(
        plan=plan,
        strategy=job.strategy,
        state=job.state,
        schedule=job.schedule,
        train_loop=job.train_loop,
        step_probe=job.step_probe,
        evaluate_loop=job.evaluate_loop,
        renew_statistics=job.renew_statistics,
        statistics_batches=min(statistics_batches, batches.max_steps),
        batches=batches,
        evaluation=evaluation,
        watch=watch,
        compute_logits=functools.partial(
            compute_logits,
            job.state,
            job.dataset,
            strategy=job.strategy,
            cluster=cluster,
        )
        if with_logits
        else None,
        control=Control(
            steps_per_loop=plan.steps_per_loop,
            max_steps=batches.max_steps,
            num_workers=cluster.num_workers,
            is_stop_requested=is_stop_requested,
        ),
        profile=StepProfile(
            profile_dir or "", plan.profile_steps if profile_dir else None
        ),
    )
