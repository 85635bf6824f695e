"""What a run says of itself, as text: at its start, at its end, in TensorBoard."""

import os
import shlex
from collections.abc import Mapping

import numpy as np

from mnist_dist.cluster.membership import LAUNCH_ID
from mnist_dist.device.train_state import TrainState, weight_path
from mnist_dist.run.directory import checkpoint_dir
from mnist_dist.training.host_loop import TrainingRun


def describe_run(run: TrainingRun, *, use_xla: bool) -> str:
    """Returns the plan of a run, a line for each thing that was decided."""
    plan, dataset, strategy = run.plan, run.dataset, run.strategy
    replicas = strategy.num_replicas_in_sync
    devices = [f"/{d.rpartition('/')[2]}" for d in strategy.extended.worker_devices]
    workers = run.cluster.num_workers
    # What TensorFlow calls it inside.
    name = type(strategy).__name__.replace("CollectiveAllReduce", "MultiWorkerMirrored")
    lines = {
        "devices": ", ".join(devices),
        "strategy": f"{name}, {_count(replicas, 'replica')}"
        f"{f' on {workers} workers' if workers > 1 else ''}, "
        f"XLA {'on' if use_xla else 'off'}",
        "data": f"{dataset.source}: {len(dataset.train.labels):,} training images "
        f"{'x'.join(map(str, dataset.image_shape))}, {dataset.num_classes} classes, "
        f"{'on the device' if run.is_resident else 'streamed'}"
        f"{''.join(f'; {note}' for note in dataset.notes)}",
        "evaluation": f"{len(dataset.evaluation.labels):,} {dataset.evaluation.name} "
        "images",
        "batch": f"{run.global_batch_size} global, "
        f"{run.global_batch_size // replicas} a replica",
        "steps": f"{plan.total_steps:,}, {plan.steps_per_epoch:,} an epoch",
        "model": f"{run.state.model.name}, {num_parameters(run.state):,} parameters",
    }
    for layer, count in _parameters_by_layer(run.state).items():
        lines[f"  {layer}"] = f"{count:,}"
    lines["model_dir"] = run.model_dir
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())


def resolved(run: TrainingRun, *, use_xla: bool) -> dict[str, object]:
    """Returns what came of the flags, for `config.json`."""
    return {
        "data": run.dataset.source,
        "image_shape": run.dataset.image_shape,
        "num_classes": run.dataset.num_classes,
        "use_xla": use_xla,
        "total_steps": run.plan.total_steps,
        "steps_per_epoch": run.plan.steps_per_epoch,
        "devices": list(run.strategy.extended.worker_devices),
        "num_workers": run.cluster.num_workers,
        LAUNCH_ID: os.environ.get(LAUNCH_ID),
    }


def describe_stop(run: TrainingRun, signal_name: str | None, *, restore: str) -> str:
    """Returns the last words of a run that a signal stopped."""
    command = "the same command"
    if restore != "auto":
        command += " without --restore and --overwrite"
    return (
        f"stopped by {signal_name or 'a signal to another worker'} at step "
        f"{run.step:,}{' and saved' if run.step else ''}; {command} goes on from there "
        f"(--model_dir={run.model_dir})"
    )


def describe_end(run: TrainingRun, export_path: str | None) -> str:
    """Returns the result of a run, and where what it made lies."""
    lines = []
    accuracy = run.log.last_eval_accuracy()
    if accuracy is not None:
        lines.append(f"{run.dataset.evaluation.name} accuracy  {accuracy:.2%}")
    lines.append(f"checkpoint     {checkpoint_dir(run.model_dir)}/ckpt-{run.step}")
    if export_path:
        lines.append(f"SavedModel     {export_path}")
    lines.append(f"watch it with  tensorboard --logdir {shlex.quote(run.model_dir)}")
    return "\n".join(lines)


def settings_table(values: Mapping[str, object]) -> str:
    """Returns the flags as a Markdown table."""
    rows = [f"| {name} | `{value}` |" for name, value in values.items()]
    return "\n".join(["| flag | value |", "|---|---|", *rows])


def model_table(state: TrainState) -> str:
    """Returns the model's weights as a Markdown table."""
    rows = [
        f"| {weight_path(state.model, v)} | {tuple(v.shape)} | {np.prod(v.shape):,.0f} |"
        for v in state.keras_weights
    ]
    return "\n".join(["| weight | shape | values |", "|---|---|---|", *rows])


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
