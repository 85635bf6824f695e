"""Evaluates trained models: loss, accuracy, figures of each class, misclassified images.

A run's newest checkpoint, its best one, or that of a step, on the test set:
  python -m mnist_dist.evaluate --model_dir=runs/mnist
  python -m mnist_dist.evaluate --model_dir=runs/mnist --checkpoint=best --format=json
A SavedModel; or several, each alone, and the average of their probabilities:
  python -m mnist_dist.evaluate --export_dir=runs/mnist/export
  python -m mnist_dist.evaluate --export_dir=runs/a/export --export_dir=runs/b/export
Each new checkpoint of a running training. The results go to MODEL_DIR/eval_watch, and
TensorBoard shows them beside the training's own curves:
  python -m mnist_dist.evaluate --model_dir=runs/mnist --watch --num_gpus=0

--watch ends with exit code 0 after the run's last checkpoint, when no process writes to
the run any more. It ends with 1 if no new checkpoint came for --timeout seconds although
more are to come, and with 143 if a signal stopped it.

If the last checkpoint is there when --watch starts, it waits 10 seconds for a training that
makes the run longer or starts it over. As the evaluator of TF_CONFIG it waits for its
training up to --timeout seconds.

A second start evaluates only what is not evaluated yet. Results of another run, split, data
set or kind of weights need another --summary_dir.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from mnist_dist.cli import model_flags, program
from mnist_dist.cluster.membership import EVALUATOR_SINCE
from mnist_dist.cluster.stop_request import StopRequest
from mnist_dist.errors import EXIT_FAILED, EXIT_STOPPED, InputError
from mnist_dist.files.untrusted import printable

if TYPE_CHECKING:  # NumPy too starts threads, which would not wait for a StopRequest
    from mnist_dist.evaluation.model_evaluation import ModelEvaluation
    from mnist_dist.evaluation.watch import WatchedEvaluation

model_flags.define_run()
model_flags.define_model()
flags.DEFINE_multi_string(
    "export_dir",
    [],
    "SavedModel, or directory of its versions, to evaluate; several form an ensemble.",
)
model_flags.define_data_dir()
flags.DEFINE_enum(
    "split",
    "test",
    ["test", "validation", "train"],
    "Part of the data set to evaluate on.",
)
flags.DEFINE_enum(
    "format", "table", ["table", "json"], "Form of the results on standard output."
)
flags.DEFINE_string(
    "summary_dir",
    None,
    "Directory for TensorBoard. Default: none; with --watch, MODEL_DIR/eval_watch.",
)
flags.DEFINE_bool("watch", False, "Evaluate each new checkpoint as it appears.")
flags.DEFINE_float(
    "timeout", 600, "Seconds without a new checkpoint that end --watch.", lower_bound=0
)
model_flags.define_devices()

FLAGS = flags.FLAGS

_SHARED = "model_dir model use_ema data_dir split summary_dir"
_DEVICES = "distribution_strategy num_gpus logical_cpus"
# Those of a run, which mean nothing to a SavedModel.
_RUN_FLAGS = "model checkpoint use_ema watch timeout distribution_strategy logical_cpus"


def main(argv: Sequence[str]) -> int:
    """Evaluates what the flags say; returns the exit code."""
    del argv
    check_flags()
    if not FLAGS.watch:
        return evaluate()
    with StopRequest() as stop:  # before the imports start threads
        return watch(stop)


def evaluate() -> int:
    """Evaluates once; returns the exit code."""
    with program.quiet_imports():
        from mnist_dist.evaluation.model_evaluation import evaluate_model

    evaluation = evaluate_model(
        **program.pick(f"{_SHARED} {_DEVICES} checkpoint export_dir")
    )
    if FLAGS.format == "json":
        print(json.dumps(evaluation.to_json(), allow_nan=False))
    else:
        print_tables(evaluation)
    return 0


def print_tables(evaluation: ModelEvaluation) -> None:
    """Prints an evaluation for a person."""
    from mnist_dist.evaluation.classification_report import (
        format_report,
        format_summary,
    )

    print(printable(f"data      {evaluation.source}, {evaluation.split} images"))
    for model in evaluation.models:
        average = ", moving average" if model.moving_average else ""
        print(printable(f"model     {model.name}{average}"))
        print(f"          {format_summary(model.report)}")
    if evaluation.ensemble:
        count = len(evaluation.models)
        print(f"ensemble  of these {count}, probabilities averaged")
        print(f"          {format_summary(evaluation.ensemble)}")
    print()
    print(format_report(evaluation.report, evaluation.class_names))


def watch(stop: StopRequest) -> int:
    """Evaluates each checkpoint as it appears, until it is stopped or the run ends."""
    with program.quiet_imports():
        from mnist_dist.evaluation.watch import watch_run

    stop.listen()
    since = os.environ.get(EVALUATOR_SINCE)
    end = watch_run(
        on_evaluation=print_watched,
        training_since=float(since) if since else None,
        is_stopped=stop.is_made,
        **program.pick(f"{_SHARED} {_DEVICES} timeout"),
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
        return EXIT_FAILED
    return 0


def print_watched(evaluation: WatchedEvaluation) -> None:
    """Prints the evaluation of one checkpoint, in one line."""
    from mnist_dist.evaluation.classification_report import format_summary

    if FLAGS.format == "json":
        print(json.dumps(evaluation.record, allow_nan=False), flush=True)
    else:
        summary = format_summary(evaluation.report)
        print(f"step {evaluation.step:,}  {summary}", flush=True)


def check_flags() -> None:
    """Checks what one flag's own bounds cannot say.

    Raises:
      InputError: names the flag, what was found and what was expected.
    """
    program.check_one_of("model_dir", "export_dir")
    program.check_checkpoint(FLAGS.checkpoint)
    if FLAGS.export_dir:
        for name in _RUN_FLAGS.split():
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
