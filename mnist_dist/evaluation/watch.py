"""Evaluates each checkpoint of a training as it appears, once, into one curve."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf

from mnist_dist.device.strategy import create_strategy
from mnist_dist.evaluation import watch_records
from mnist_dist.evaluation.classification_report import ClassificationReport, to_json
from mnist_dist.evaluation.loaded_model import LoadedModel, load_data
from mnist_dist.evaluation.model_evaluation import describe_data, evaluate_loaded
from mnist_dist.evaluation.new_checkpoints import NewCheckpoint, follow_checkpoints
from mnist_dist.evaluation.summaries import save_summaries
from mnist_dist.files.durable import is_local, remove_unfinished
from mnist_dist.inference import trained_model
from mnist_dist.modeling.networks import ModelChoice
from mnist_dist.run.checkpoints import list_checkpoints
from mnist_dist.run.config import RunConfig
from mnist_dist.run.directory import check_directory, check_own, remove_evaluations
from mnist_dist.run.paths import checkpoint_dirs, watch_dir


@dataclasses.dataclass(frozen=True)
class WatchedEvaluation:
    """The evaluation of one checkpoint of a training that is watched.

    Attributes:
      step: of the checkpoint.
      report: how good it is.
      record: what was written of it to `ckpt-<step>.json`.
    """

    step: int
    report: ClassificationReport
    record: dict[str, Any]


def watch_run(
    model_dir: str,
    *,
    on_evaluation: Callable[[WatchedEvaluation], None],
    model: ModelChoice | None = None,
    use_ema: bool | None = None,
    data_dir: str | None = None,
    split: str = "test",
    summary_dir: str | None = None,
    timeout: float = 600.0,
    training_since: float | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
    distribution_strategy: str = "auto",
    num_gpus: int = -1,
    logical_cpus: int = 1,
) -> Literal["last", "timeout", "stopped"]:
    """Evaluates each checkpoint of a run, the oldest first, until the run's last one.

    What is on record already is not evaluated again. Records of steps to which the run
    was sent back since are replaced.

    Args:
      model_dir: directory of the run, which need not have begun.
      on_evaluation: called with each evaluation once it is on disk.
      model: as in `evaluate_model`.
      use_ema: as in `evaluate_model`.
      data_dir: as in `evaluate_model`.
      split: as in `evaluate_model`.
      summary_dir: gets the records, and event files for TensorBoard; None:
        `MODEL_DIR/eval_watch`.
      timeout: seconds without a new checkpoint, after which to end.
      training_since: as in `follow_checkpoints`.
      is_stopped: whether to end before the next checkpoint.
      distribution_strategy: as in `evaluate_model`.
      num_gpus: as in `evaluate_model`.
      logical_cpus: as in `evaluate_model`.

    Returns:
      Why it ended: the run's `last` checkpoint was evaluated, the `timeout` passed, or
      it was `stopped`.

    Raises:
      InputError: as in `evaluate_model`; or `summary_dir` has evaluations of another
        run, split, data set or kind of weights, which stay as they are.
      RunError: something cannot be written.
    """
    directory = summary_dir or watch_dir(model_dir)
    check_directory(directory, flag="--summary_dir")
    if summary_dir is None:
        check_own(model_dir)
    remove_unfinished(directory, is_mine=False)
    watcher = _Watcher(
        create_strategy(
            distribution_strategy, num_gpus=num_gpus, logical_cpus=logical_cpus
        ),
        model_dir=model_dir,
        directory=directory,
        model=model,
        use_ema=use_ema,
        data_dir=data_dir,
        split=split,
    )

    def visit(found: NewCheckpoint) -> None:
        if evaluation := watcher.evaluate(found):
            on_evaluation(evaluation)

    return follow_checkpoints(
        model_dir,
        visit,
        is_stopped=is_stopped,
        timeout=timeout,
        training_since=training_since,
    )


class _Watcher:
    """Evaluates checkpoints of one run, with one model for all of them."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        *,
        model_dir: str,
        directory: str,
        model: ModelChoice | None,
        use_ema: bool | None,
        data_dir: str | None,
        split: str,
    ) -> None:
        self._strategy = strategy
        self._model_dir = model_dir
        self._directory = directory
        self._model_choice = model
        self._use_ema = use_ema
        self._data_dir = data_dir
        self._split = split
        self._config: RunConfig | None = None

    def evaluate(self, found: NewCheckpoint) -> WatchedEvaluation | None:
        """Evaluates a checkpoint; None if that is on record already.

        Raises:
          InputError: as in `watch_run`.
        """
        self._load(found)
        record = {
            "name": found.prefix,
            "step": found.step,
            "evaluated": {"written": found.written, "run": self._describe_run()},
            "moving_average": self._model.moving_average,
            "data": describe_data(
                self._data.source, self._data.checksum, self._data.split.name
            ),
        }
        watch_records.check_records(self._directory, record)
        self._remove_stale(found)
        if watch_records.load_record(self._directory, found.step):
            return None
        report = evaluate_loaded([self._model], self._data).report
        save_summaries(
            self._directory,
            found.step,
            report,
            images=self._data.split.images,
            class_names=self._data.class_names,
        )
        record |= to_json(report, self._data.class_names)
        watch_records.save_record(self._directory, found.step, record)
        return WatchedEvaluation(found.step, report, record)

    def _load(self, found: NewCheckpoint) -> None:
        """Sets the model's weights; builds it first where the run's settings are new."""
        is_new = found.config != self._config
        if is_new:
            with self._strategy.scope():
                self._state = trained_model.create_inference_state(
                    found.config, model_dir=self._model_dir, model=self._model_choice
                )
        trained = trained_model.restore(
            self._state,
            config=found.config,
            prefix=found.prefix,
            arrays=found.arrays,
            use_ema=self._use_ema,
        )
        if is_new:
            self._model = LoadedModel.of_checkpoint(trained, self._strategy)
            self._data = load_data(
                [self._model], data=None, data_dir=self._data_dir, split=self._split
            )
            self._config = found.config

    def _remove_stale(self, found: NewCheckpoint) -> None:
        """Removes evaluations of what a run that was sent back has left behind."""
        directories = checkpoint_dirs(self._model_dir)
        newest = max(s for d in directories for s in [found.step, *list_checkpoints(d)])
        remove_evaluations(self._directory, first_step=newest + 1)
        before = watch_records.load_record(self._directory, found.step)
        if before and before["evaluated"]["written"] != found.written:
            # The run was sent back to before this step, and came here again.
            remove_evaluations(self._directory, first_step=found.step)

    def _describe_run(self) -> str:
        """Returns where the run lies: seen from the records, which may move with it."""
        if not is_local(self._model_dir):
            return self._model_dir
        path = os.path.realpath(self._model_dir)
        if not is_local(self._directory):
            return path
        return os.path.relpath(path, os.path.realpath(self._directory))
