"""What a run says of itself, as text: at its start, at its end, in TensorBoard."""

import os
import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from mnist_dist.cluster.membership import LAUNCH_ID
from mnist_dist.device.kernels import kernel_conditions
from mnist_dist.device.train_state import TrainState, weight_path
from mnist_dist.reporting.run_summary import RunSummary
from mnist_dist.reporting.tables import show_seconds
from mnist_dist.run.board_tables import create_table
from mnist_dist.run.checkpoints import checkpoint_prefix
from mnist_dist.run.paths import best_dir, metrics_path
from mnist_dist.training.job import Job
from mnist_dist.training.restore import Start
from mnist_dist.training.result import TrainingResult


def describe_plan(
    job: Job,
    *,
    num_workers: int,
    global_batch_size: int,
    num_microbatches: int,
    has_augmentation: bool,
    model_dir: str,
) -> str:
    """Returns the plan of a run, a line for each thing that was decided."""
    plan, dataset, strategy, state = job.plan, job.dataset, job.strategy, job.state
    replicas = strategy.num_replicas_in_sync
    microbatches = ""
    if num_microbatches:
        microbatches = f", in microbatches of {global_batch_size // num_microbatches}"
    devices = [f"/{d.rpartition('/')[2]}" for d in strategy.extended.worker_devices]
    # What TensorFlow calls it inside.
    name = type(strategy).__name__.replace("CollectiveAllReduce", "MultiWorkerMirrored")
    lines = {
        "devices": ", ".join(devices),
        "strategy": f"{name}, {_count(replicas, 'replica')}"
        f"{f' on {num_workers} workers' if num_workers > 1 else ''}, "
        f"XLA {'on' if job.use_xla else 'off'}",
        "data": f"{dataset.source}: {len(dataset.train.labels):,} training images "
        f"{'x'.join(map(str, dataset.image_shape))}, {dataset.num_classes} classes, "
        f"{'on the device' if job.is_resident else 'streamed'}"
        f"{''.join(f'; {note}' for note in dataset.notes)}",
        "evaluation": f"{len(dataset.evaluation.labels):,} {dataset.evaluation.name} "
        "images",
        "augmentation": "random affine changes" if has_augmentation else "none",
        "batch": f"{global_batch_size} global, {global_batch_size // replicas} a replica"
        f"{microbatches}",
        "steps": f"{plan.total_steps:,}, {plan.steps_per_epoch:,} an epoch",
        "model": f"{state.model.name}, {num_parameters(state):,} parameters",
    }
    for layer, count in _parameters_by_layer(state).items():
        lines[f"  {layer}"] = f"{count:,}"
    lines["model_dir"] = model_dir
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())


def resolved(
    job: Job,
    *,
    num_workers: int,
    starts: Sequence[Mapping[str, object]],
    ended: Mapping[str, object] | None,
) -> dict[str, object]:
    """Returns what came of the options, for `config.json`.

    Args:
      job: what was computed.
      num_workers: of the run.
      starts: `step` and `time` of each start that trained.
      ended: `step` and `reason`; None while the run goes on.
    """
    return {
        "data": job.dataset.source,
        "image_shape": job.dataset.image_shape,
        "num_classes": job.dataset.num_classes,
        "class_names": job.dataset.class_names,
        "edge_shade": job.dataset.edge_shade,
        "inverse_share": job.dataset.inverse_share,
        "use_xla": job.use_xla,
        "total_steps": job.plan.total_steps,
        "steps_per_epoch": job.plan.steps_per_epoch,
        "devices": list(job.strategy.extended.worker_devices),
        "num_workers": num_workers,
        **kernel_conditions(job.strategy),
        "starts": list(starts),
        "ended": ended,
        LAUNCH_ID: os.environ.get(LAUNCH_ID),
    }


def describe_other_bits(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Returns in one line why a run goes on with other last bits; "" if it does not.

    Args:
      before: `resolved` of the run's last start; versions before this one recorded no
        `kernel_conditions` in it.
      now: `kernel_conditions` of this start.
    """
    changes = [
        f"{name} {before[name]}, now {value}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]
    if not changes:
        return ""
    return (
        f"other bits     the run had {'; '.join(changes)}: it is no longer bit for bit"
    )


def describe_nothing_to_do(step: int, reason: str) -> str:
    """Returns what a start says that finds its run at the end."""
    return f"nothing to do  the run is at step {step:,}, and {reason}"


def describe_dry_run(*, exports: bool) -> str:
    """Returns the last words of a dry run: what it has tried."""
    tried = (
        "a step, an evaluation and the export"
        if exports
        else "a step and an evaluation"
    )
    return f"dry run        {tried} were tried, and no file was changed"


def describe_start(start: Start, *, epoch: float) -> str:
    """Returns from where a run goes on, and what was moved out of the way for it."""
    if start.checkpoint is None:
        return ""
    text = f"goes on from   {start.checkpoint} (step {start.step:,}, epoch {epoch:.2f})"
    if start.set_aside:
        steps = ", ".join(f"{step:,}" for step in start.set_aside)
        text += f"\nset aside      the checkpoints of steps {steps}, which are later"
    return text


def describe_stop(
    result: TrainingResult, *, signal_name: str | None, restore: str
) -> str:
    """Returns the last words of a run that a signal stopped."""
    command = "the same command"
    if restore != "auto":
        command += " without --restore and --overwrite"
    return (
        f"stopped by {signal_name or 'a signal to another worker'} at step "
        f"{result.step:,}{' and saved' if result.step else ''}; {command} goes on from "
        f"there (--model_dir={result.model_dir})"
    )


def describe_end(
    result: TrainingResult, recorded: RunSummary, *, split: str, total_steps: int
) -> str:
    """Returns the result of a run, what it took, and where what it made lies.

    Args:
      result: with all that is known of the end.
      recorded: what all starts of the run have recorded.
      split: what was evaluated on: `test` or `validation`.
      total_steps: the run's length, unless it stops early.
    """
    lines = {}
    if result.accuracy is not None:
        lines[f"{split} accuracy"] = f"{result.accuracy:.2%}"
    if result.best_step is not None:
        lines["best"] = f"{result.best_accuracy:.2%} at step {result.best_step:,}"
    if result.step < total_steps:
        lines["ended early"] = (
            f"at step {result.step:,} of {total_steps:,}: {result.ended}"
        )
    if recorded.seconds is not None:
        lines["time"] = f"{show_seconds(recorded.seconds)} without start-up and export"
    if recorded.images_per_second is not None:
        lines["speed"] = f"{recorded.images_per_second:,.0f} images/s"
    if recorded.num_resumes:
        lines["resumed"] = _count(recorded.num_resumes, "time")
    lines["checkpoint"] = str(result.checkpoint)
    has_better = result.best_step not in (None, result.step)
    if has_better:
        folder = best_dir(result.model_dir)
        lines["best weights"] = checkpoint_prefix(folder, result.best_step or 0)
    if result.saved_model:
        whose = ""
        if has_better:
            is_best = result.saved_model_step == result.best_step
            whose = "  (the best's weights)" if is_best else "  (the last weights)"
        lines["SavedModel"] = f"{result.saved_model}{whose}"
    lines["records"] = metrics_path(result.model_dir)
    lines["watch it with"] = f"tensorboard --logdir {shlex.quote(result.model_dir)}"
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())


def settings_table(values: Mapping[str, object]) -> str:
    """Returns the flags as a Markdown table."""
    return create_table(["flag", "value"], values.items())


def model_table(state: TrainState) -> str:
    """Returns the model's weights as a Markdown table."""
    return create_table(
        ["weight", "shape", "values"],
        [
            (path, tuple(v.shape), f"{np.prod(v.shape):,.0f}")
            for path, v in zip(state.weight_paths, state.keras_weights, strict=True)
        ],
    )


def num_parameters(state: TrainState) -> int:
    """Returns how many numbers are trained."""
    return sum(_parameters_by_layer(state).values())


def _parameters_by_layer(state: TrainState) -> dict[str, int]:
    counts: dict[str, int] = {}
    for variable in state.keras_parameters:
        layer = weight_path(state.model, variable).rpartition("/")[0]
        counts[layer] = counts.get(layer, 0) + int(np.prod(variable.shape))
    return counts


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
