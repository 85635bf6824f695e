"""What TensorBoard shows of a run beside its records: time, memory, settings, pictures."""

from __future__ import annotations

import os
import resource
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.summary import pb as custom_scalar_pb
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary import session_end_pb
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from mnist_dist.data import Dataset, ExampleStream
from mnist_dist.device.step_probe import StepFigures
from mnist_dist.device.train_state import TrainState
from mnist_dist.evaluation.classification_report import create_classification_report
from mnist_dist.evaluation.summaries import summarize_answers, summarize_curves
from mnist_dist.modeling.augmentation import augment
from mnist_dist.modeling.networks import normalize
from mnist_dist.run.board_images import draw_filters, draw_grid, image_pb
from mnist_dist.run.board_tables import create_table
from mnist_dist.run.config import versions
from mnist_dist.run.run_log import RunLog
from mnist_dist.training.board_graph import graph_pb

if TYPE_CHECKING:
    from mnist_dist.training.options import TrainingOptions

ACTIVITIES = ("input", "step", "evaluation", "checkpoint", "host")
_GRID = 6  # augmented images, a row and a column
_GIB = 1 << 30
# Charts of the custom scalars, by category: their titles, and patterns of tags.
_CHARTS = {
    "Progress": {"accuracy": ["^accuracy$"], "loss": ["^loss$"]},
    "Speed": {
        "images a second": ["^images_per_second$"],
        "milliseconds a step": ["^perf/step_ms$"],
        "workers: milliseconds for their share of a step": [
            "^perf/(fastest|slowest)_worker_ms$"
        ],
        "share of time": [f"^perf/share_{name}$" for name in ACTIVITIES],
    },
    "Memory": {"GiB": ["^memory/.*$"]},
    "Gradients": {
        "norm of all": ["^gradients/global_norm$"],
        "update to weight": ["^updates/.*$"],
    },
    "Classes": {"accuracy of each": ["^classes/.*$"]},
}


class Board:
    """Writes the chief's summaries that are no records; `--summary_detail` says how many."""

    def __init__(
        self,
        log: RunLog,
        *,
        dataset: Dataset,
        state: TrainState,
        step: int,
        options: TrainingOptions,
        began: float,
    ) -> None:
        """Prepares to show a run that goes on from `step`.

        Args:
          log: of the run, open for writing.
          dataset: what it trains and evaluates on.
          state: its variables.
          step: updates done.
          options: of this start.
          began: when the run first started, in seconds since 1970.
        """
        self._log = log
        self._dataset = dataset
        self._state = state
        self._options = options
        self._first_step = self._step = step
        self._began = began

    def show_start(self) -> None:
        """Shows what holds from this start on: layout, settings, data, and a batch."""
        log, options, data = self._log, self._options, self._dataset
        log.write_summary("train", create_layout())
        hparams = {name: _as_hparam(v) for name, v in options.settings().items()}
        # TensorBoard takes sessions of one name for repetitions, and shows their mean.
        session = os.path.abspath(options.model_dir)
        log.write_session(
            hparams_pb(hparams, trial_id=session, start_time_secs=self._began)
        )
        about = {
            "source": data.source,
            "training images": f"{len(data.train.labels):,}",
            f"{data.evaluation.name} images": f"{len(data.evaluation.labels):,}",
            "image shape": "x".join(map(str, data.image_shape)),
            "classes": ", ".join(data.class_names or map(str, range(data.num_classes))),
            "SHA-256": data.checksum,
            **{f"note {n}": note for n, note in enumerate(data.notes, start=1)},
        }
        log.write_text("data", create_table(["", ""], about.items()))
        log.write_text("versions", create_table(["", ""], versions().items()))
        log.write_text("command", f"    {shlex.join(sys.argv)}")
        log.write_summary("train", graph_pb(self._state.model))
        log.write_summary("train", image_pb("batch", self._draw_batch()))

    def show_interval(
        self,
        step: int,
        seconds: Mapping[str, float],
        figures: StepFigures | None,
    ) -> None:
        """Shows the time and memory of the steps since the last call.

        Args:
          step: updates done.
          seconds: since the last call, by activity, as `Stopwatch.take` returns them.
          figures: of the next step; None: not measured.
        """
        total = sum(seconds.values()) or 1.0
        scalars = {
            f"perf/share_{name}": seconds.get(name, 0.0) / total for name in ACTIVITIES
        }
        if step > self._step:
            in_steps = seconds.get("step", 0.0) / (step - self._step)
            scalars["perf/step_ms"] = 1000 * in_steps
        self._step = step
        scalars |= measure_memory()
        if self._state.loss_scale is not None:
            scalars["optimizer/loss_scale"] = float(self._state.loss_scale[0])
        if figures:
            scalars |= describe_step(figures, clips=self._options.clip_global_norm > 0)
        summary = Summary()
        for name, value in scalars.items():
            summary.MergeFrom(scalar_pb(name, value))
        self._log.write_summary("train", summary, step=step)

    def show_evaluation(self, step: int, logits: np.ndarray | None) -> None:
        """Shows the first layer's filters; in full detail all weights, and answers.

        Args:
          step: updates done.
          logits: of the evaluated split, as `compute_logits` returns them; None: none.
        """
        weights = self._state.inference_weights()
        summary = Summary()
        kernel = next((v.numpy() for v in weights if v.shape.rank > 1), np.zeros([0]))
        drawn = draw_filters(kernel, self._dataset.image_shape)
        if drawn.size:
            summary.MergeFrom(image_pb("first_layer", drawn))
        if self._options.summary_detail == "full":
            for path, variable in zip(self._state.weight_paths, weights, strict=True):
                summary.MergeFrom(histogram_pb(f"weights/{path}", variable.numpy()))
        if logits is not None:
            summary.MergeFrom(self._summarize_answers(logits))
        self._log.write_summary("eval", summary, step=step)

    def show_end(self, step: int, *, has_failed: bool) -> None:
        """Shows in the table of settings that the run is at its end.

        A run that goes on after all takes it back: it is of a later step.
        """
        status = api_pb2.STATUS_FAILURE if has_failed else api_pb2.STATUS_SUCCESS
        summary = Summary.FromString(session_end_pb(status).SerializeToString())
        self._log.write_summary("eval", summary, step=step + 1)

    def _summarize_answers(self, logits: np.ndarray) -> Summary:
        split = self._dataset.evaluation
        log_probabilities = tf.nn.log_softmax(logits).numpy()
        probabilities = np.exp(log_probabilities)
        report = create_classification_report(
            split.labels,
            classes=logits.argmax(axis=1),
            confidences=probabilities.max(axis=1),
            losses=-log_probabilities[np.arange(len(logits)), split.labels],
            num_classes=self._dataset.num_classes,
        )
        summary = summarize_answers(
            report,
            images=split.images,
            class_names=self._dataset.class_names,
        )
        summary.MergeFrom(summarize_curves(split.labels, probabilities))
        return summary

    def _draw_batch(self) -> np.ndarray:
        """Draws the first images of the next batch as the model will see them."""
        train, batch = self._dataset.train, self._options.global_batch_size
        stream = ExampleStream(num_examples=len(train.labels), seed=self._options.seed)
        position = self._first_step * batch
        indices = stream.indices(position, min(batch, _GRID * _GRID))
        images = train.images[indices]
        if self._options.has_augmentation:
            with tf.device("/CPU:0"):
                changed = augment(
                    normalize(tf.constant(images)),
                    tf.constant(position, tf.int64),
                    seed=self._options.seed,
                )
            images = np.round(changed.numpy() * 255).astype(np.uint8)
        return draw_grid(images, columns=_GRID)


def create_layout() -> Summary:
    """Returns the layout of the custom scalars: what belongs together on one chart."""
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=category,
                chart=[
                    layout_pb2.Chart(
                        title=title,
                        multiline=layout_pb2.MultilineChartContent(tag=tags),
                    )
                    for title, tags in charts.items()
                ],
            )
            for category, charts in _CHARTS.items()
        ]
    )
    return Summary.FromString(custom_scalar_pb(layout).SerializeToString())


def describe_step(figures: StepFigures, *, clips: bool) -> dict[str, float]:
    """Returns the figures of a step by their tags; those that are not finite are left out.

    Args:
      figures: as a `StepProbe` measures them.
      clips: whether the run clips gradients.
    """
    scalars = {"gradients/global_norm": figures.gradient_norm}
    if clips:
        scalars["gradients/clip_factor"] = figures.clip_factor
    for path, ratio in figures.update_ratios.items():
        scalars[f"updates/{path}"] = ratio
    seconds = figures.worker_seconds
    if len(seconds) > 1:
        for name, rank in (
            ("fastest", int(np.argmin(seconds))),
            ("slowest", int(np.argmax(seconds))),
        ):
            scalars[f"perf/{name}_worker"] = rank
            scalars[f"perf/{name}_worker_ms"] = 1000 * seconds[rank]
    return {name: value for name, value in scalars.items() if np.isfinite(value)}


def measure_memory() -> dict[str, float]:
    """Returns the memory in use now and at its peak, in GiB: of the host and of GPUs."""
    # Kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"memory/host_peak": peak / _GIB}
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        found["memory/host"] = pages * os.sysconf("SC_PAGE_SIZE") / _GIB
    except (OSError, ValueError, IndexError):
        pass  # as on a system without /proc
    for device in tf.config.list_logical_devices("GPU"):
        name = device.name.removeprefix("/device:")
        used = tf.config.experimental.get_memory_info(name)
        tag = f"memory/{name.replace(':', '_').lower()}"
        found |= {tag: used["current"] / _GIB, f"{tag}_peak": used["peak"] / _GIB}
    return found


def _as_hparam(value: Any) -> bool | float | str:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
