"""How good trained models are: checkpoints of runs, SavedModels, ensembles of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_dist.data import Dataset
from mnist_dist.device.strategy import create_strategy
from mnist_dist.errors import InputError
from mnist_dist.evaluation import classification_report
from mnist_dist.evaluation.classification_report import (
    ClassificationReport,
    create_classification_report,
)
from mnist_dist.evaluation.loaded_model import LoadedModel, load_data
from mnist_dist.evaluation.summaries import save_summaries
from mnist_dist.inference.evaluation_data import EvaluationData
from mnist_dist.inference.split_predictions import predict_split
from mnist_dist.inference.trained_model import load_trained_model
from mnist_dist.modeling.networks import ModelChoice
from mnist_dist.run.directory import check_directory


@dataclasses.dataclass(frozen=True)
class ModelReport:
    """How good one model is.

    Attributes:
      name: path of its checkpoint or SavedModel.
      step: of the checkpoint; None if a SavedModel does not say.
      moving_average: whether its weights are one; None if a SavedModel does not say.
      report: over the split.
    """

    name: str
    step: int | None
    moving_average: bool | None
    report: ClassificationReport

    def to_json(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns what JSON can hold of it."""
        about = {
            "name": self.name,
            "step": self.step,
            "moving_average": self.moving_average,
        }
        return about | classification_report.to_json(self.report, class_names)


@dataclasses.dataclass(frozen=True)
class ModelEvaluation:
    """How good one or several models are on one split.

    Attributes:
      source: of the data, for a person to read.
      checksum: SHA-256 (hex) of the data set; None for arrays in memory.
      split: `train`, `validation` or `test`; `data` for arrays in memory.
      models: each of them alone.
      ensemble: the average of their probabilities; None of one model.
      class_names: the name of each class; None where the data set has none.
    """

    source: str
    checksum: str | None
    split: str
    models: tuple[ModelReport, ...]
    ensemble: ClassificationReport | None
    class_names: tuple[str, ...] | None = None

    @property
    def report(self) -> ClassificationReport:
        """Of the ensemble, or of the one model."""
        return self.ensemble or self.models[0].report

    @property
    def accuracy(self) -> float:
        """Share of images that got the right class, by `report`."""
        return self.report.accuracy

    @property
    def loss(self) -> float:
        """Mean cross-entropy, by `report`."""
        return self.report.loss

    def to_json(self) -> dict[str, Any]:
        """Returns what JSON can hold of it."""
        result: dict[str, Any] = {
            "data": describe_data(self.source, self.checksum, self.split),
            "models": [model.to_json(self.class_names) for model in self.models],
        }
        if self.ensemble:
            result["ensemble"] = classification_report.to_json(
                self.ensemble, self.class_names
            )
        return result


def evaluate_model(
    model_dir: str | None = None,
    *,
    export_dir: str | Sequence[str] = (),
    model: ModelChoice | None = None,
    checkpoint: str = "latest",
    use_ema: bool | None = None,
    data: Dataset | tuple[np.ndarray, np.ndarray] | None = None,
    data_dir: str | None = None,
    split: str = "test",
    summary_dir: str | None = None,
    distribution_strategy: str = "auto",
    num_gpus: int = -1,
    logical_cpus: int = 1,
) -> ModelEvaluation:
    """Evaluates a checkpoint of a run, or SavedModels: every image exactly once.

    Args:
      model_dir: directory of the run, which may be going on; or give `export_dir`.
      export_dir: a SavedModel or directory of its versions; several are evaluated each
        alone and, their probabilities averaged, together.
      model: builds the run's model, as in `load_trained_model`.
      checkpoint: of the run: `latest` (the newest that is whole), `best`, or a step.
      use_ema: whether to take the moving average of the weights; None takes it where
        the run kept one.
      data: a data set in memory; or images uint8 [n, height, width, channels] and
        labels [n] alone.
      data_dir: the directory of a data set, in place of `data`. Neither: the one that
        the model was trained on.
      split: of the data set: `train`, `validation` or `test`.
      summary_dir: gets an event file for TensorBoard; None: none is written.
      distribution_strategy: `auto` (by the number of devices), `one_device` or
        `mirrored`; SavedModels compute on one device.
      num_gpus: GPUs to use; -1: all.
      logical_cpus: devices to split the CPU into.

    Raises:
      InputError: there is no such run, checkpoint or SavedModel, or it is damaged; the
        data cannot be read or does not fit the model; or the models do not fit each
        other.
      RunError: the summaries cannot be written.
    """
    exports = [export_dir] if isinstance(export_dir, str) else list(export_dir)
    if bool(model_dir) == bool(exports):
        raise InputError(
            f"--model_dir and --export_dir: found {'both' if exports else 'neither'}, "
            "expected one of the two"
        )
    if summary_dir:
        check_directory(summary_dir, flag="--summary_dir")
    strategy = create_strategy(
        "one_device" if exports else distribution_strategy,
        num_gpus=num_gpus,
        logical_cpus=logical_cpus,
    )
    if model_dir:
        with strategy.scope():
            trained = load_trained_model(
                model_dir, model=model, checkpoint=checkpoint, use_ema=use_ema
            )
        models = [LoadedModel.of_checkpoint(trained, strategy)]
    else:
        models = [LoadedModel.of_saved_model(directory) for directory in exports]
    found = load_data(models, data=data, data_dir=data_dir, split=split)
    evaluation = evaluate_loaded(models, found)
    if summary_dir:
        _save_summaries(evaluation, summary_dir, images=found.split.images)
    return evaluation


def evaluate_loaded(
    models: Sequence[LoadedModel], data: EvaluationData
) -> ModelEvaluation:
    """Evaluates each model and, of several, the average of their probabilities."""
    num_classes = models[0].num_classes
    each, together = predict_split(
        [model.logits for model in models], data.split, num_classes=num_classes
    )
    *reports, ensemble = [
        create_classification_report(
            data.split.labels,
            classes=predictions.classes,
            confidences=predictions.confidences,
            losses=predictions.losses,
            num_classes=num_classes,
        )
        for predictions in [*each, together]
    ]
    return ModelEvaluation(
        source=data.source,
        checksum=data.checksum,
        split=data.split.name,
        models=tuple(
            ModelReport(model.name, model.step, model.moving_average, report)
            for model, report in zip(models, reports, strict=True)
        ),
        ensemble=ensemble if len(models) > 1 else None,
        class_names=data.class_names,
    )


def describe_data(source: str, checksum: str | None, split: str) -> dict[str, Any]:
    """Returns what the results say of the data, as JSON holds it."""
    return {"source": source, "sha256": checksum, "split": split}


def _save_summaries(
    evaluation: ModelEvaluation, directory: str, *, images: np.ndarray
) -> None:
    steps = [model.step or 0 for model in evaluation.models]
    folders = [os.path.join(directory, f"model_{n + 1}") for n in range(len(steps))]
    if evaluation.ensemble is None:
        folders = [directory]
    else:
        save_summaries(
            os.path.join(directory, "ensemble"),
            max(steps),
            evaluation.ensemble,
            images=images,
            class_names=evaluation.class_names,
        )
    for folder, step, model in zip(folders, steps, evaluation.models, strict=True):
        save_summaries(
            folder,
            step,
            model.report,
            images=images,
            class_names=evaluation.class_names,
        )
