"""A whole training, from the options to what it leaves behind: read this first."""

import contextlib
import functools
import sys
from collections.abc import Set

import tensorflow as tf

from mnist_dist.artifacts.saved_model import trace_signatures
from mnist_dist.cluster.membership import Cluster
from mnist_dist.cluster.stop_request import StopRequest
from mnist_dist.data import Dataset, dataset_from_arrays, load_dataset
from mnist_dist.device.keras_objects import find_keras_objects
from mnist_dist.device.peers import leave_together, names_lost_peers
from mnist_dist.device.progress_watch import ProgressWatch
from mnist_dist.device.strategy import create_strategy
from mnist_dist.errors import EXIT_STOPPED
from mnist_dist.modeling.own_models import running_own_code
from mnist_dist.run.best import Best
from mnist_dist.run.directory import check_directory
from mnist_dist.training import description
from mnist_dist.training.board import Board
from mnist_dist.training.ending import complete_run
from mnist_dist.training.host_loop import HostLoop
from mnist_dist.training.job import Job, create_host_loop, create_job
from mnist_dist.training.options import TrainingOptions, say
from mnist_dist.training.progress import Progress
from mnist_dist.training.recorded_options import share_options, take_recorded
from mnist_dist.training.recorder import Recorder
from mnist_dist.training.restore import Start, restore_run
from mnist_dist.training.result import TrainingResult
from mnist_dist.training.run_record import RunRecord


def run_training(
    options: TrainingOptions, given: Set[str], cluster: Cluster, stop: StopRequest
) -> TrainingResult:
    """Trains as one worker of a cluster.

    Args:
      options: with their defaults.
      given: names of those that were given.
      cluster: the workers, and which of them this is.
      stop: asks the run to stop; entered, and not listening yet.

    Raises:
      InputError, RunError, PeerError: as `train_model` says.
    """
    with names_lost_peers(cluster):
        dataset, strategy, options = _prepare(options, given, cluster, stop)
        return _train(options, dataset, strategy, cluster, stop)


def _prepare(
    options: TrainingOptions, given: Set[str], cluster: Cluster, stop: StopRequest
) -> tuple[Dataset, tf.distribute.Strategy, TrainingOptions]:
    """Finds what to train on: the data, the devices of all workers, a run's options."""
    tell = functools.partial(say, options)
    if cluster.num_workers == 1:
        options = take_recorded(options, given, say=tell)
    dataset = _load_data(options)
    strategy = create_strategy(
        options.distribution_strategy,
        cluster=cluster,
        greeting=options.shared() | {"data_checksum": dataset.checksum},
        is_stopping=stop.is_made,
        **options.pick("cluster_timeout peer_timeout num_gpus logical_cpus"),
        **options.pick("intra_op_threads"),
        **options.pick("logical_gpus gpu_memory_limit all_reduce_alg deterministic"),
    )
    stop.listen()  # only now: with several workers TensorFlow has taken SIGTERM
    if cluster.num_workers > 1:
        # The chief alone can read the run; the others learn its options from it.
        if cluster.is_chief:
            options = take_recorded(options, {*given, "data_dir"}, say=tell)
        options = share_options(strategy, options)
        dataset = _load_data(options)
    tf.config.experimental.enable_tensor_float_32_execution(options.tensor_float_32)
    return dataset, strategy, options


def _load_data(options: TrainingOptions) -> Dataset:
    if isinstance(options.data, Dataset):
        return options.data
    validation = options.pick("validation_examples") | {"validation_seed": options.seed}
    if options.data is not None:
        return dataset_from_arrays(*options.data, **validation)
    validation |= options.pick("validation_split")
    return load_dataset(options.data_dir, **validation)


def _train(
    options: TrainingOptions,
    dataset: Dataset,
    strategy: tf.distribute.Strategy,
    cluster: Cluster,
    stop: StopRequest,
) -> TrainingResult:
    """Trains as one worker of a cluster."""
    # 1. What to compute: the model, its variables on each replica, the device loops.
    plan = options.plan(len(dataset.train.labels))
    job = create_job(options, plan, dataset=dataset, strategy=strategy, cluster=cluster)
    if cluster.is_chief:
        say(
            options,
            description.describe_plan(
                job,
                num_workers=cluster.num_workers,
                has_augmentation=options.has_augmentation,
                **options.pick("global_batch_size num_microbatches model_dir"),
            ),
        )

    with contextlib.ExitStack() as closing:
        # 2. Where it left off, if it had begun. The chief alone reads and writes the run.
        start = _restore(options, job, closing) if cluster.is_chief else None
        watch = ProgressWatch(cluster, seconds=options.step_timeout)
        loop = create_host_loop(
            job,
            cluster=cluster,
            with_logits=options.summary_detail == "full",
            watch=watch,
            profile_dir=f"{options.model_dir}/train" if cluster.is_chief else None,
            is_stop_requested=lambda: stop.signal_name is not None,
            **options.pick("global_batch_size seed statistics_batches"),
        )
        with running_own_code(options.model_name, doing="it cannot be trained"):
            loop.begin(start)
        if options.dry_run:
            _try_everything(options, job, loop)
            if cluster.is_chief:
                say(options, description.describe_dry_run(exports=options.export))
            leave_together(strategy, code=0)
            return TrainingResult(options.model_dir, step=0, ended="it was a dry run")
        closing.callback(watch.end)
        watch.begin()
        recorder = record = None
        if start:
            record = _begin_record(
                options, job, start, loop=loop, num_workers=cluster.num_workers
            )
            closing.enter_context(record.noting_failure(lambda: loop.step))
            recorder = _create_recorder(options, job, start, began=record.began)

        # 3. Many steps in one call on the device; between two calls, what is due.
        ended = loop.run(recorder)
        watch.end()

        # 4. What is left behind.
        result = TrainingResult(
            options.model_dir,
            step=loop.step,
            ended=ended,
            stopped_by=None if ended else stop.signal_name or "another worker",
        )
        if recorder and record:
            result = complete_run(
                options,
                job,
                result,
                loop=loop,
                recorder=recorder,
                record=record,
            )
        if ended is None:
            say(
                options,
                description.describe_stop(
                    result, signal_name=stop.signal_name, restore=options.restore
                ),
            )
    sys.stdout.flush()  # before what may end the process at once
    leave_together(strategy, code=EXIT_STOPPED if ended is None else 0)
    return result


def _try_everything(options: TrainingOptions, job: Job, loop: HostLoop) -> None:
    """Does in a dry run what else happens hours later: an evaluation, an export."""
    with running_own_code(options.model_name, doing="it cannot be evaluated"):
        loop.try_evaluation()
    if options.export:
        with running_own_code(options.model_name, doing="it cannot be exported"):
            trace_signatures(job.state, image_shape=job.dataset.image_shape)


def _restore(
    options: TrainingOptions, job: Job, closing: contextlib.ExitStack
) -> Start | None:
    """Finds what the run begins with; its lock and log are closed at the end."""
    if options.export and options.export_dir:
        check_directory(options.export_dir, flag="--export_dir")
    start = restore_run(
        model=job.state.model,
        specs={**job.state.specs(), **Best.specs()},
        settings=options.settings() | {"data_checksum": job.dataset.checksum},
        say=functools.partial(say, options),
        stopping=job.plan.stopping,
        **options.pick("model_dir restore overwrite override_config"),
        **options.pick("init_from dry_run writers"),
    )
    if start:
        closing.callback(start.lock.close)
        closing.callback(start.log.close)
        epoch = start.step * options.global_batch_size / len(job.dataset.train.labels)
        say(options, description.describe_start(start, epoch=epoch))
    return start


def _begin_record(
    options: TrainingOptions,
    job: Job,
    start: Start,
    *,
    loop: HostLoop,
    num_workers: int,
) -> RunRecord:
    """Writes the start into the run, and says so if no step is left to train."""
    reason = job.plan.stopping.reason_to_end(loop.step, loop.best)
    record = RunRecord(
        options, job, start, num_workers=num_workers, trains=reason is None
    )
    if start.checkpoint and reason:
        say(options, description.describe_nothing_to_do(loop.step, reason))
    return record


def _create_recorder(
    options: TrainingOptions, job: Job, start: Start, *, began: float
) -> Recorder:
    start.log.write_text("settings", description.settings_table(options.values()))
    start.log.write_text("model", description.model_table(job.state))
    board = None
    if options.summary_detail != "minimal":
        board = Board(
            start.log,
            dataset=job.dataset,
            state=job.state,
            step=start.step,
            options=options,
            began=began,
        )
        board.show_start()
    return Recorder(
        log=start.log,
        progress=Progress(
            total_steps=job.plan.total_steps,
            stream=sys.stdout if options.progress else None,
        ),
        keras_objects=find_keras_objects(job.state),
        board=board,
        **options.pick("model_dir max_to_keep on_record on_evaluation on_checkpoint"),
    )
