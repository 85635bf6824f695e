"""What a run leaves behind: how it ended, its SavedModel, its last words."""

import dataclasses

from mnist_dist.artifacts.saved_model import export_saved_model
from mnist_dist.reporting.run_summary import load_run_summary
from mnist_dist.run import checkpoints, paths
from mnist_dist.run.best import Best
from mnist_dist.run.config import load_run_config
from mnist_dist.training import description
from mnist_dist.training.host_loop import HostLoop
from mnist_dist.training.job import Job
from mnist_dist.training.options import TrainingOptions, say
from mnist_dist.training.recorder import Recorder
from mnist_dist.training.result import TrainingResult
from mnist_dist.training.run_record import RunRecord


def complete_run(
    options: TrainingOptions,
    job: Job,
    result: TrainingResult,
    *,
    loop: HostLoop,
    recorder: Recorder,
    record: RunRecord,
) -> TrainingResult:
    """Records how a run ended, exports if it came to its end, and tells of it.

    Raises:
      RunError: something cannot be written, or the export is not what the model is.
    """
    reason = result.ended or f"stopped by {result.stopped_by}"
    record.end(step=result.step, reason=reason)
    has_best = loop.best.step >= 0
    folder = paths.checkpoint_dir(options.model_dir)
    result = dataclasses.replace(
        result,
        accuracy=recorder.log.last_eval_accuracy(),
        best_accuracy=loop.best.accuracy if has_best else None,
        best_step=loop.best.step if has_best else None,
        checkpoint=checkpoints.checkpoint_prefix(folder, result.step)
        if result.step
        else None,
    )
    if not result.ended:
        return result
    if options.export:
        _take_exported_weights(options, job, loop.best)
        export = export_saved_model(
            job.state,
            options.export_dir or paths.export_dir(options.model_dir),
            config=load_run_config(options.model_dir),
            uses_ema=options.ema_decay > 0,
            evaluation=job.dataset.evaluation,
        )
        step = int(job.state.step.numpy())
        result = dataclasses.replace(
            result, saved_model=export.path, saved_model_step=step
        )
    say(
        options,
        description.describe_end(
            result,
            load_run_summary(options.model_dir, name=""),
            split=job.dataset.evaluation.name,
            total_steps=job.plan.total_steps,
        ),
    )
    return result


def _take_exported_weights(options: TrainingOptions, job: Job, best: Best) -> None:
    """Sets the state to the best checkpoint's, if that is what is exported."""
    chooses = job.dataset.validation is not None or options.early_stopping_patience > 0
    wants_best = options.export_checkpoint == "best" or (
        options.export_checkpoint == "auto" and chooses
    )
    if wants_best and best.step not in (-1, int(job.state.step.numpy())):
        folder = paths.best_dir(options.model_dir)
        job.state.from_arrays(checkpoints.read_step(folder, best.step))
