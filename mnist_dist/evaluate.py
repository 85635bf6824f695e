"""Evaluates what was trained: how often it is right, and where it is wrong.

A run's newest checkpoint, its best, or one step's, on the test set:
  python -m mnist_dist.evaluate --model_dir=runs/mnist
  python -m mnist_dist.evaluate --model_dir=runs/mnist --checkpoint=best --format=json
A SavedModel; several, each alone and their averaged probabilities together:
  python -m mnist_dist.evaluate --export_dir=runs/mnist/export
  python -m mnist_dist.evaluate --export_dir=runs/a/export --export_dir=runs/b/export
Each new checkpoint of a training that goes on, into MODEL_DIR/eval_watch, where
TensorBoard shows it beside the training's own curves:
  python -m mnist_dist.evaluate --model_dir=runs/mnist --watch --num_gpus=0

--watch ends with exit code 0 after the run's last checkpoint, once no process writes to
the run. If the last one was there from the start, it first waits 10 seconds for a training
that makes the run longer, or starts it over; as the evaluator of TF_CONFIG, it waits up to
--timeout seconds for the training that it was started with. It ends with 1 when --timeout
seconds brought no new checkpoint while more are to come, and with 143 when a signal
stopped it. Started again, it evaluates what it has not evaluated yet. Another run, split,
data set or kind of weights than what the directory holds needs another --summary_dir.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from mnist_dist.cli import program
from mnist_dist.cluster.membership import EVALUATOR_SINCE
from mnist_dist.cluster.stop_request import StopRequest
from mnist_dist.errors import EXIT_STOPPED, InputError

if TYPE_CHECKING:  # NumPy too starts threads, which would not wait for a StopRequest
    import numpy as np
    import tensorflow as tf

    from mnist_dist.data import Split
    from mnist_dist.evaluation.checkpoint_watch import NewCheckpoint
    from mnist_dist.evaluation.classification_report import ClassificationReport
    from mnist_dist.inference.trained_model import TrainedModel
    from mnist_dist.run.config import RunConfig

_ENUM, _INT = flags.DEFINE_enum, flags.DEFINE_integer
flags.DEFINE_string("model_dir", None, "Directory of the run.")
flags.DEFINE_string(
    "checkpoint", "latest", "Which checkpoint of the run: latest, best, or a step."
)
flags.DEFINE_bool(
    "use_ema", None, "Take the weights' moving average. Default: if the run kept one."
)
flags.DEFINE_multi_string(
    "export_dir",
    [],
    "SavedModel, or directory of its versions, to evaluate; several form an ensemble.",
)
flags.DEFINE_string(
    "data_dir", None, "Data set to evaluate on. Default: what the model was trained on."
)
_ENUM(
    "split",
    "test",
    ["test", "validation", "train"],
    "Part of the data set to evaluate on.",
)
_ENUM("format", "table", ["table", "json"], "Form of the results on standard output.")
flags.DEFINE_string(
    "summary_dir",
    None,
    "Directory for TensorBoard. Default: none; with --watch, MODEL_DIR/eval_watch.",
)
flags.DEFINE_bool("watch", False, "Evaluate each new checkpoint as it appears.")
flags.DEFINE_float(
    "timeout", 600, "Seconds without a new checkpoint that end --watch.", lower_bound=0
)
_ENUM(
    "distribution_strategy",
    "auto",
    ["auto", "one_device", "mirrored"],
    "auto chooses by the number of devices.",
)
_INT("num_gpus", -1, "GPUs to use; -1: all.", lower_bound=-1)
_INT("logical_cpus", 1, "Devices to split the CPU into.", lower_bound=1, upper_bound=64)

FLAGS = flags.FLAGS

# Those of a run, which mean nothing to a SavedModel.
_RUN_FLAGS = (
    "checkpoint",
    "use_ema",
    "watch",
    "timeout",
    "distribution_strategy",
    "logical_cpus",
)


@dataclasses.dataclass(frozen=True)
class _Model:
    """A model to evaluate.

    Attributes:
      about: what the results say of it: name, step, kind of weights.
      logits: maps uint8 [n, height, width, channels] to float32 [n, num_classes].
      image_shape: height, width, channels.
      num_classes: width of the logits.
      data_dir: of the data set it was trained on; None is the bundled MNIST.
      data_checksum: of that data set; None if that is not known.
      validation_examples: that its training set apart.
    """

    about: dict[str, Any]
    logits: Callable[[np.ndarray], np.ndarray]
    image_shape: tuple[int, int, int]
    num_classes: int
    data_dir: str | None
    data_checksum: str | None
    validation_examples: int


def main(argv: Sequence[str]) -> int:
    """Evaluates what the flags say; returns the exit code."""
    del argv
    check_flags()
    if not FLAGS.watch:
        return evaluate()
    with StopRequest() as stop:  # before the imports start threads
        return evaluate(stop)


def evaluate(stop: StopRequest | None = None) -> int:
    """Evaluates once, or until `stop` is made; returns the exit code."""
    with program.quiet_imports():
        from mnist_dist.device.strategy import create_strategy
        from mnist_dist.run import directory as run_directory

    if FLAGS.summary_dir:
        run_directory.check_directory(FLAGS.summary_dir, flag="--summary_dir")
    strategy = create_strategy(
        "one_device" if FLAGS.export_dir else FLAGS.distribution_strategy,
        num_gpus=FLAGS.num_gpus,
        logical_cpus=FLAGS.logical_cpus,
    )
    if stop:
        return _watch(strategy, stop)
    if FLAGS.export_dir:
        models = [_load_saved_model(directory) for directory in FLAGS.export_dir]
    else:
        models = [_load_checkpoint(strategy)]
    split, about_data = _load_split(models)
    reports, ensemble = _create_reports(models, split)
    if FLAGS.format == "json":
        _print_json(models, reports, ensemble, about_data)
    else:
        _print_tables(models, reports, ensemble, about_data)
    if FLAGS.summary_dir:
        _save_summaries(models, reports, ensemble, split)
    return 0


def _load_checkpoint(strategy: tf.distribute.Strategy) -> _Model:
    from mnist_dist.inference.trained_model import load_trained_model

    with strategy.scope():
        trained = load_trained_model(
            FLAGS.model_dir, checkpoint=FLAGS.checkpoint, use_ema=FLAGS.use_ema
        )
    return _create_model(strategy, trained)


def _create_model(strategy: tf.distribute.Strategy, trained: TrainedModel) -> _Model:
    from mnist_dist.inference.split_predictions import create_logits_function

    config = trained.config
    return _Model(
        about={
            "name": trained.checkpoint,
            "step": trained.step,
            "moving_average": trained.uses_ema,
        },
        logits=create_logits_function(strategy, trained.state),
        image_shape=config.image_shape,
        num_classes=config.num_classes,
        data_dir=config.data_dir,
        data_checksum=config.data_checksum,
        validation_examples=config.validation_examples,
    )


def _load_saved_model(directory: str) -> _Model:
    from mnist_dist.artifacts.model_card import load_model_card
    from mnist_dist.inference.classifier import find_saved_model, load_classifier

    path = find_saved_model(directory)
    card = load_model_card(path) or {}
    classifier = load_classifier(path)
    data = card.get("data") or {}
    return _Model(
        about={
            "name": path,
            "step": card.get("step"),
            "moving_average": card.get("moving_average"),
        },
        logits=lambda images: classifier.classify(images)[1],
        image_shape=classifier.image_shape,
        num_classes=classifier.num_classes,
        data_dir=data.get("data_dir"),
        data_checksum=data.get("sha256"),
        validation_examples=data.get("validation_examples") or 0,
    )


def _load_split(models: list[_Model]) -> tuple[Split, dict[str, Any]]:
    """Loads what all the models are evaluated on, and what the results say of it."""
    from mnist_dist.inference.split_predictions import (
        load_split,
        warn_of_other_data,
    )

    first = models[0]
    for other in models[1:]:
        for what in ("image_shape", "num_classes", "data_dir", "validation_examples"):
            if what == "data_dir" and FLAGS.data_dir:
                continue
            if what == "validation_examples" and FLAGS.split == "test":
                continue
            found, expected = getattr(other, what), getattr(first, what)
            if found != expected:
                raise InputError(
                    f"--export_dir: {other.about['name']} has the {what} {found}, "
                    f"expected {expected} as {first.about['name']} has"
                )
    split, dataset = load_split(
        FLAGS.split,
        data_dir=FLAGS.data_dir or first.data_dir,
        validation_examples=first.validation_examples,
        image_shape=first.image_shape,
        num_classes=first.num_classes,
    )
    if not FLAGS.data_dir:
        for model in models:
            warn_of_other_data(
                model.about["name"],
                expected=model.data_checksum,
                source=dataset.source,
                found=dataset.checksum,
            )
    about = {"source": dataset.source, "sha256": dataset.checksum, "split": split.name}
    return split, about


def _create_reports(
    models: list[_Model], split: Split
) -> tuple[list[ClassificationReport], ClassificationReport | None]:
    """Evaluates each model and, of several, the average of their probabilities."""
    from mnist_dist.evaluation.classification_report import (
        create_classification_report,
    )
    from mnist_dist.inference.split_predictions import predict_split

    num_classes = models[0].num_classes
    each, together = predict_split(
        [model.logits for model in models], split, num_classes=num_classes
    )
    reports = [
        create_classification_report(
            split.labels,
            classes=predictions.classes,
            confidences=predictions.confidences,
            losses=predictions.losses,
            num_classes=num_classes,
        )
        for predictions in ([*each, together] if len(models) > 1 else each)
    ]
    return reports[: len(models)], reports[-1] if len(models) > 1 else None


def _print_json(
    models: list[_Model],
    reports: list[ClassificationReport],
    ensemble: ClassificationReport | None,
    about_data: dict[str, Any],
) -> None:
    from mnist_dist.evaluation import classification_report

    result: dict[str, Any] = {
        "data": about_data,
        "models": [
            model.about | classification_report.to_json(report)
            for model, report in zip(models, reports, strict=True)
        ],
    }
    if ensemble:
        result["ensemble"] = classification_report.to_json(ensemble)
    print(json.dumps(result, allow_nan=False))


def _print_tables(
    models: list[_Model],
    reports: list[ClassificationReport],
    ensemble: ClassificationReport | None,
    about_data: dict[str, Any],
) -> None:
    from mnist_dist.evaluation import classification_report

    print(f"data      {about_data['source']}, {about_data['split']} images")
    for model, report in zip(models, reports, strict=True):
        average = ", moving average" if model.about["moving_average"] else ""
        print(f"model     {model.about['name']}{average}")
        print(f"          {classification_report.format_summary(report)}")
    if ensemble:
        print(f"ensemble  of these {len(models)}, probabilities averaged")
        print(f"          {classification_report.format_summary(ensemble)}")
    print()
    print(classification_report.format_report(ensemble or reports[0]))


def _save_summaries(
    models: list[_Model],
    reports: list[ClassificationReport],
    ensemble: ClassificationReport | None,
    split: Split,
) -> None:
    from mnist_dist.evaluation.records import save_summaries

    def save(directory: str, step: int, report: ClassificationReport) -> None:
        save_summaries(directory, step, report, images=split.images)

    steps = [model.about["step"] or 0 for model in models]
    if ensemble is None:
        return save(FLAGS.summary_dir, steps[0], reports[0])
    for number, (step, report) in enumerate(zip(steps, reports, strict=True), start=1):
        save(os.path.join(FLAGS.summary_dir, f"model_{number}"), step, report)
    save(os.path.join(FLAGS.summary_dir, "ensemble"), max(steps), ensemble)


def _watch(strategy: tf.distribute.Strategy, stop: StopRequest) -> int:
    """Evaluates each checkpoint of a run once; returns the exit code."""
    from mnist_dist.evaluation.checkpoint_watch import follow_checkpoints
    from mnist_dist.run.directory import watch_dir

    watcher = _Watcher(strategy, FLAGS.summary_dir or watch_dir(FLAGS.model_dir))
    since = os.environ.get(EVALUATOR_SINCE)
    stop.listen()
    end = follow_checkpoints(
        FLAGS.model_dir,
        watcher.visit,
        is_stopped=lambda: stop.signal_name is not None,
        timeout=FLAGS.timeout,
        training_since=float(since) if since else None,
    )
    if end == "stopped":
        print(f"stopped by {stop.signal_name}; the same command goes on", flush=True)
        return EXIT_STOPPED
    if end == "timeout":
        print(
            f"--timeout: {FLAGS.timeout:g} seconds without a new checkpoint in "
            f"{FLAGS.model_dir}, whose last step was not reached; the same command "
            "goes on",
            file=sys.stderr,
        )
        return 1
    return 0


class _Watcher:
    """Evaluates checkpoints of one run, with one model for all of them."""

    def __init__(self, strategy: tf.distribute.Strategy, directory: str) -> None:
        self._strategy = strategy
        self._directory = directory
        self._config: RunConfig | None = None
        self._known: set[int] = set()  # steps whose records are of this kind

    def visit(self, found: NewCheckpoint) -> None:
        """Evaluates a checkpoint, unless that is already on record.

        Raises:
          InputError: other records than of this run, split, data set and kind of
            weights are in the directory; they stay as they are.
        """
        from mnist_dist.evaluation import classification_report, records
        from mnist_dist.inference import trained_model
        from mnist_dist.run.directory import remove_evaluations

        is_first = found.config != self._config
        if is_first:
            self._config = found.config
            with self._strategy.scope():
                self._state = trained_model.create_inference_state(
                    found.config, model_dir=FLAGS.model_dir
                )
        trained = trained_model.restore(
            self._state,
            config=found.config,
            prefix=found.prefix,
            arrays=found.arrays,
            use_ema=FLAGS.use_ema,
        )
        if is_first:
            self._model = _create_model(self._strategy, trained)
            self._split, self._about_data = _load_split([self._model])
        evaluated = {"written": found.written, "run": self._describe_run()}
        record = {"name": found.prefix, "step": found.step, "evaluated": evaluated}
        record |= {"moving_average": trained.uses_ema, "data": self._about_data}
        self._known |= records.check_records(self._directory, record, known=self._known)
        if is_first:
            self._remove_later()
        before = records.load_record(self._directory, found.step)
        if before is not None:
            if before["evaluated"]["written"] == found.written:
                return
            # The run was sent back to before this step, and came here again.
            remove_evaluations(self._directory, first_step=found.step)

        (report,), _ = _create_reports([self._model], self._split)
        records.save_summaries(
            self._directory, found.step, report, images=self._split.images
        )
        record |= classification_report.to_json(report)
        records.save_record(self._directory, found.step, record)
        if FLAGS.format == "json":
            print(json.dumps(record, allow_nan=False), flush=True)
        else:
            summary = classification_report.format_summary(report)
            print(f"step {found.step:,}  {summary}", flush=True)

    def _describe_run(self) -> str:
        """Returns where the run lies: seen from the records, which may move with it."""
        from mnist_dist.files.durable import is_local

        if not is_local(FLAGS.model_dir):
            return FLAGS.model_dir
        path = os.path.realpath(FLAGS.model_dir)
        if not is_local(self._directory):
            return path
        return os.path.relpath(path, os.path.realpath(self._directory))

    def _remove_later(self) -> None:
        """Removes what is later than all checkpoints: the run was sent back since."""
        from mnist_dist.run.checkpoints import list_checkpoints
        from mnist_dist.run.directory import checkpoint_dirs, remove_evaluations

        directories = checkpoint_dirs(FLAGS.model_dir)
        steps = [step for d in directories for step in list_checkpoints(d)]
        if steps:
            remove_evaluations(self._directory, first_step=max(steps) + 1)


def check_flags() -> None:
    """Checks what one flag's own bounds cannot say.

    Raises:
      InputError: names the flag, what was found and what was expected.
    """
    program.check_one_of("model_dir", "export_dir")
    program.check_checkpoint(FLAGS.checkpoint)
    if FLAGS.export_dir:
        for name in _RUN_FLAGS:
            if FLAGS[name].present:
                raise InputError(
                    f"--{name}: found with --export_dir, expected with --model_dir: it "
                    "says nothing of a SavedModel"
                )
    if FLAGS.watch and FLAGS["checkpoint"].present:
        raise InputError(
            "--checkpoint: found with --watch, expected without: it evaluates them all"
        )
    if FLAGS["timeout"].present and not FLAGS.watch:
        raise InputError("--timeout: found without --watch, expected with it")


if __name__ == "__main__":
    program.run(main)
