"""From a checkpoint of a run to a model that others can use."""

import dataclasses
import os
from typing import Any

from absl import logging

from mnist_dist.artifacts import onnx_model
from mnist_dist.artifacts.model_files import FILE_FORMATS, export_file
from mnist_dist.artifacts.saved_model import export_saved_model
from mnist_dist.errors import InputError
from mnist_dist.inference.evaluation_data import (
    EvaluationData,
    load_evaluation_data,
    warn_of_other_data,
)
from mnist_dist.inference.trained_model import TrainedModel, load_trained_model
from mnist_dist.modeling.networks import ModelChoice
from mnist_dist.run.directory import check_own, list_version_paths
from mnist_dist.run.paths import export_dir as default_export_dir

FORMATS = ("saved_model", *FILE_FORMATS)


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A model that lies somewhere for others to use.

    Attributes:
      path: of the SavedModel or the file.
      format: one of `FORMATS`.
      checkpoint: path of the checkpoint that it was made from.
      step: of the checkpoint.
      moving_average: whether its weights are one.
      is_new: whether it was written just now; else it was there, the same model.
      served_version: of a SavedModel: the version in its directory that TensorFlow
        Serving serves, which is the highest; else None.
    """

    path: str
    format: str
    checkpoint: str
    step: int
    moving_average: bool
    is_new: bool
    served_version: int | None


def export_model(
    model_dir: str,
    *,
    model: ModelChoice | None = None,
    checkpoint: str = "latest",
    use_ema: bool | None = None,
    format: str = "saved_model",
    export_dir: str | None = None,
    version: int | None = None,
    overwrite: bool = False,
    data_dir: str | None = None,
) -> ExportedModel:
    """Writes a model for others to use, from a checkpoint of a run.

    What is written is loaded again, and must compute what the model does, before it
    gets its name. The same model is not written twice, and no other one is replaced
    without `overwrite`: a SavedModel then gets the next free version.

    Args:
      model_dir: directory of the run, which may be going on.
      model: builds the run's model, as in `load_trained_model`.
      checkpoint: `latest` (the newest that is whole), `best`, or a step.
      use_ema: whether to take the moving average of the weights; None takes it where
        the run kept one.
      format: `saved_model`, in a folder named by its version; or one file, `keras`,
        `tflite` or `onnx`, which computes in float32 whatever the run did.
      export_dir: where to write; None is `MODEL_DIR/export`.
      version: of a SavedModel; None is the step.
      overwrite: replace another model of the same name.
      data_dir: directory of the data set whose test images give the accuracy on the
        model card; None is what the run was evaluated on.

    Raises:
      InputError: there is no such run or checkpoint, or it is damaged; the model
        cannot be written in this format, or what writes it is not installed; the directory cannot be written to; or
        another model has the name.
      RunError: writing failed, or what was written does not compute what the model
        does; nothing was published.
    """
    if format not in FORMATS:
        raise InputError(f"--format: found {format!r}, expected {', '.join(FORMATS)}")
    if version is not None and format != "saved_model":
        raise InputError(
            f"--version: found {version} with --format={format}, expected none: only "
            "SavedModels have versions"
        )
    if format == "onnx":
        onnx_model.check_installed()
    trained = load_trained_model(
        model_dir,
        model=model,
        checkpoint=checkpoint,
        use_ema=use_ema,
        # ONNX Runtime has no products and convolutions in bfloat16 for CPUs.
        dtype="float32" if format == "onnx" else None,
    )
    data = _load_data(trained, data_dir)
    if export_dir is None:
        check_own(model_dir)
    directory = export_dir or default_export_dir(model_dir)
    about: dict[str, Any] = {
        "config": trained.config,
        "uses_ema": trained.uses_ema,
        "evaluation": data and data.split,
        "evaluation_checksum": data and data.checksum,
        "overwrite": overwrite,
    }
    if format == "saved_model":
        export = export_saved_model(trained.state, directory, version=version, **about)
    else:
        export = export_file(trained.state, directory, file_format=format, **about)
    served = None
    if format == "saved_model":
        served = int(os.path.basename(list_version_paths(directory)[0]))
    return ExportedModel(
        path=export.path,
        format=format,
        checkpoint=trained.checkpoint,
        step=trained.step,
        moving_average=trained.uses_ema,
        is_new=export.is_new,
        served_version=served,
    )


def _load_data(trained: TrainedModel, data_dir: str | None) -> EvaluationData | None:
    """Loads what gives the accuracy on the card; None if the run's data are gone."""
    config = trained.config
    is_validated = bool(config.validation_examples) and not data_dir
    try:
        data = load_evaluation_data(
            "validation" if is_validated else "test",
            data_dir=data_dir or config.data_dir,
            validation_examples=config.validation_examples,
            validation_split=config.validation_split,
            validation_seed=config.seed,
            image_shape=config.image_shape,
            num_classes=config.num_classes,
        )
    except InputError as error:
        if data_dir:
            raise
        logging.warning("no accuracy on the model card, for the run's data: %s", error)
        return None
    if not data_dir:
        warn_of_other_data(trained.checkpoint, expected=config.data_checksum, data=data)
    return data
