"""A whole training, from the options to what it leaves behind: read this first.

`mnist_dist.train_model` is the function of this file; the program `train` makes keyword
arguments of its flags and calls it. TensorFlow takes seconds to import: not before the
options are known to be good.
"""

import contextlib
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from mnist_dist.cluster.membership import Cluster, find_cluster
from mnist_dist.cluster.stop_request import StopRequest
from mnist_dist.device.quiet_imports import quiet_imports
from mnist_dist.errors import EXIT_STOPPED, InputError
from mnist_dist.training.options import TrainingOptions

if TYPE_CHECKING:
    import tensorflow as tf

    from mnist_dist.data import Dataset
    from mnist_dist.training.host_loop import HostLoop
    from mnist_dist.training.job import Job
    from mnist_dist.training.recorder import Recorder
    from mnist_dist.training.restore import Start

Options = ParamSpec("Options")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a training ended, and where what it made lies.

    Attributes:
      model_dir: of the run.
      step: updates done.
      ended: why it ended; None if it was stopped before.
      stopped_by: the signal that stopped it, by name; None if none did.
      accuracy: of the last evaluation; None if there was none.
      best_accuracy: of the best evaluation; None likewise.
      best_step: step of that evaluation; None likewise.
      checkpoint: path of the last checkpoint, as TensorFlow takes it.
      saved_model: path of the SavedModel; None if none was written.
      saved_model_step: of its weights; None likewise.
    """

    model_dir: str
    step: int
    ended: str | None
    stopped_by: str | None = None
    accuracy: float | None = None
    best_accuracy: float | None = None
    best_step: int | None = None
    checkpoint: str | None = None
    saved_model: str | None = None
    saved_model_step: int | None = None


def _takes_keywords_of(
    options: Callable[Options, TrainingOptions],
) -> Callable[
    [Callable[[TrainingOptions, Set[str]], Result]], Callable[Options, Result]
]:
    """Has a function of options take them as keyword arguments, types and all.

    The function also gets the names of those that were given.
    """

    def decorate(function: Callable[[TrainingOptions, Set[str]], Result]):
        @functools.wraps(function)
        def call(*args: Options.args, **kwargs: Options.kwargs) -> Result:
            return function(options(*args, **kwargs), kwargs.keys())

        signature = inspect.signature(options)
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(function).return_annotation
        )
        return call

    return decorate


@_takes_keywords_of(TrainingOptions)
def train_model(options: TrainingOptions, given: Set[str]) -> TrainingResult:
    """Trains a model, or goes on with a run, and returns how it ended.

    Takes what `mnist-dist train --help` lists as keyword arguments; only `model_dir` is
    needed. Besides, `model` may be a function, as `create(image_shape=...,
    num_classes=...)` that returns a Keras model; `data` a `Dataset`; and `on_record`,
    `on_evaluation` and `on_checkpoint` functions that are called on the chief while it
    trains.

    It may be called several times in a process, and in any thread. Signals stop it only
    in the main thread, and their handlers are put back at the end.

    Raises:
      OptionError: an option is wrong; it is a `ValueError` too.
      InputError: the data, the model or the directory is wrong, or TensorFlow was
        started in this process with other devices.
      RunError: the run cannot go on, as the disk is full.
      PeerError: another worker is gone.
    """
    cluster = find_cluster(**options.pick("worker_hosts task_index"))
    if cluster.is_evaluator:
        raise InputError(
            "TF_CONFIG: found this process to be the evaluator, expected a worker: "
            "`mnist-dist evaluate --watch` evaluates"
        )
    if cluster.num_workers > 1:
        _say(options, cluster.describe())
    with StopRequest() as stop:  # before the imports start threads
        with quiet_imports():
            from mnist_dist.device.strategy import names_lost_peers
        with names_lost_peers(cluster):
            dataset, strategy, options = _prepare(options, given, cluster, stop)
            return _train(options, dataset, strategy, cluster, stop)


def _prepare(
    options: TrainingOptions, given: Set[str], cluster: Cluster, stop: StopRequest
) -> "tuple[Dataset, tf.distribute.Strategy, TrainingOptions]":
    """Finds what to train on: the data, the devices of all workers, a run's options."""
    from mnist_dist.device.strategy import create_strategy
    from mnist_dist.training.recorded_options import share_options, take_recorded

    say = functools.partial(_say, options)
    if cluster.num_workers == 1:
        options = take_recorded(options, given, say=say)
    dataset = _load_data(options)
    strategy = create_strategy(
        options.distribution_strategy,
        cluster=cluster,
        greeting=options.shared() | {"data_checksum": dataset.checksum},
        is_stopping=stop.is_made,
        **options.pick("cluster_timeout peer_timeout num_gpus logical_cpus"),
        **options.pick("all_reduce_alg deterministic"),
    )
    stop.listen()  # only now: with several workers TensorFlow has taken SIGTERM
    if cluster.num_workers > 1:
        # The chief alone can read the run; the others learn its options from it.
        if cluster.is_chief:
            options = take_recorded(options, {*given, "data_dir"}, say=say)
        options = share_options(strategy, options)
        dataset = _load_data(options)
    return dataset, strategy, options


def _load_data(options: TrainingOptions) -> "Dataset":
    from mnist_dist.data import load_dataset

    return options.data or load_dataset(
        options.data_dir,
        validation_seed=options.seed,
        **options.pick("validation_examples validation_split"),
    )


def _train(
    options: TrainingOptions,
    dataset: "Dataset",
    strategy: "tf.distribute.Strategy",
    cluster: Cluster,
    stop: StopRequest,
) -> TrainingResult:
    """Trains as one worker of a cluster."""
    from mnist_dist.device.strategy import leave_together
    from mnist_dist.training import description
    from mnist_dist.training.job import create_host_loop, create_job

    # 1. What to compute: the model, its variables on each replica, the device loops.
    plan = options.plan(len(dataset.train.labels))
    job = create_job(options, plan, dataset=dataset, strategy=strategy)
    if cluster.is_chief:
        _say(
            options,
            description.describe_plan(
                job,
                num_workers=cluster.num_workers,
                has_augmentation=options.has_augmentation,
                **options.pick("global_batch_size model_dir"),
            ),
        )

    with contextlib.ExitStack() as closing:
        # 2. Where it left off, if it had begun. The chief alone reads and writes the run.
        start = _restore(options, job, closing) if cluster.is_chief else None
        if options.dry_run:
            leave_together(strategy, code=0)
            return TrainingResult(options.model_dir, step=0, ended="it was a dry run")
        loop = create_host_loop(
            job,
            num_workers=cluster.num_workers,
            profile_dir=f"{options.model_dir}/train" if cluster.is_chief else None,
            is_stop_requested=lambda: stop.signal_name is not None,
            **options.pick("global_batch_size seed"),
        )
        loop.begin(start)
        recorder = None
        if start:
            recorder = _create_recorder(options, job, start)
            _save_config(options, job, cluster)
            reason = plan.stopping.reason_to_end(loop.step, loop.best)
            if start.checkpoint and reason:
                _say(options, description.describe_nothing_to_do(loop.step, reason))

        # 3. Many steps in one call on the device; between two calls, what is due.
        ended = loop.run(recorder)

        # 4. What is left behind.
        result = TrainingResult(
            options.model_dir,
            step=loop.step,
            ended=ended,
            stopped_by=None if ended else stop.signal_name or "another worker",
        )
        if recorder:
            reason = ended or f"stopped by {result.stopped_by}"
            end = {"step": result.step, "reason": reason}
            _save_config(options, job, cluster, ended=end)
            result = _complete(options, job, result, loop, recorder)
        if ended is None:
            _say(
                options,
                description.describe_stop(
                    result, signal_name=stop.signal_name, restore=options.restore
                ),
            )
    sys.stdout.flush()  # before what may end the process at once
    leave_together(strategy, code=EXIT_STOPPED if ended is None else 0)
    return result


def _restore(
    options: TrainingOptions, job: "Job", closing: contextlib.ExitStack
) -> "Start | None":
    """Finds what the run begins with; its lock and log are closed at the end."""
    from mnist_dist.run.best import Best
    from mnist_dist.run.directory import check_directory
    from mnist_dist.training.description import describe_start
    from mnist_dist.training.restore import restore_run

    if options.export and options.export_dir:
        check_directory(options.export_dir, flag="--export_dir")
    start = restore_run(
        model=job.state.model,
        specs={**job.state.specs(), **Best.specs()},
        settings=options.settings() | {"data_checksum": job.dataset.checksum},
        say=functools.partial(_say, options),
        **options.pick("model_dir restore overwrite override_config"),
        stopping=job.plan.stopping,
        **options.pick("init_from dry_run writers"),
    )
    if start:
        closing.callback(start.lock.close)
        closing.callback(start.log.close)
        epoch = start.step * options.global_batch_size / len(job.dataset.train.labels)
        _say(options, describe_start(start, epoch=epoch))
    return start


def _create_recorder(
    options: TrainingOptions, job: "Job", start: "Start"
) -> "Recorder":
    from mnist_dist.training import description
    from mnist_dist.training.progress import Progress
    from mnist_dist.training.recorder import Recorder

    start.log.write_text("settings", description.settings_table(options.values()))
    start.log.write_text("model", description.model_table(job.state))
    return Recorder(
        log=start.log,
        progress=Progress(
            total_steps=job.plan.total_steps,
            stream=sys.stdout if options.progress else None,
        ),
        **options.pick("model_dir max_to_keep on_record on_evaluation on_checkpoint"),
    )


def _save_config(
    options: TrainingOptions,
    job: "Job",
    cluster: Cluster,
    *,
    ended: dict[str, object] | None = None,
) -> None:
    from mnist_dist.run.config import save_config
    from mnist_dist.training import description

    save_config(
        options.model_dir,
        settings=options.settings() | {"data_checksum": job.dataset.checksum},
        flags=options.values(),
        resolved=description.resolved(
            job, num_workers=cluster.num_workers, ended=ended
        ),
    )


def _complete(
    options: TrainingOptions,
    job: "Job",
    result: TrainingResult,
    loop: "HostLoop",
    recorder: "Recorder",
) -> TrainingResult:
    """Exports, if the run has ended, and tells how it did."""
    from mnist_dist.artifacts.saved_model import export_saved_model
    from mnist_dist.run import checkpoints, directory
    from mnist_dist.run.config import load_run_config
    from mnist_dist.training import description

    has_best = loop.best.step >= 0
    folder = directory.checkpoint_dir(options.model_dir)
    result = dataclasses.replace(
        result,
        accuracy=recorder.log.last_eval_accuracy(),
        best_accuracy=loop.best.accuracy if has_best else None,
        best_step=loop.best.step if has_best else None,
        checkpoint=checkpoints.checkpoint_prefix(folder, result.step)
        if result.step
        else None,
    )
    if result.ended and options.export:
        _take_exported_weights(options, job, loop)
        export = export_saved_model(
            job.state,
            options.export_dir or directory.export_dir(options.model_dir),
            config=load_run_config(options.model_dir),
            uses_ema=options.ema_decay > 0,
            evaluation=job.dataset.evaluation,
        )
        result = dataclasses.replace(
            result,
            saved_model=export.path,
            saved_model_step=int(job.state.step.numpy()),
        )
    if result.ended:
        _say(
            options,
            description.describe_end(
                result,
                split=job.dataset.evaluation.name,
                total_steps=job.plan.total_steps,
            ),
        )
    return result


def _take_exported_weights(
    options: TrainingOptions, job: "Job", loop: "HostLoop"
) -> None:
    """Sets the state to the best checkpoint's, if that is what is exported."""
    from mnist_dist.run.checkpoints import read_step
    from mnist_dist.run.directory import best_dir

    chooses = job.dataset.validation is not None or options.early_stopping_patience > 0
    wants_best = options.export_checkpoint == "best" or (
        options.export_checkpoint == "auto" and chooses
    )
    if wants_best and loop.best.step not in (-1, loop.step):
        job.state.from_arrays(read_step(best_dir(options.model_dir), loop.best.step))


def _say(options: TrainingOptions, text: str) -> None:
    if text and options.messages:
        options.messages(text)
