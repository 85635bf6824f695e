"""Models that are ready to be evaluated, wherever they came from, and their data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mnist_dist.data import Dataset
from mnist_dist.data.loading import VALIDATION_SPLITS
from mnist_dist.errors import InputError
from mnist_dist.inference.classifier import find_saved_model, load_classifier
from mnist_dist.inference.evaluation_data import (
    EvaluationData,
    arrays_as_data,
    load_evaluation_data,
    select_split,
    warn_of_other_data,
)
from mnist_dist.inference.model_card import load_model_card
from mnist_dist.inference.split_predictions import (
    LogitsFunction,
    create_logits_function,
)
from mnist_dist.inference.trained_model import TrainedModel
from mnist_dist.run.config_file import EARLIER_SETTINGS


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be evaluated.

    Attributes:
      name: path of its checkpoint or SavedModel.
      step: of the checkpoint; None if a SavedModel does not say.
      moving_average: whether the weights are one; None if a SavedModel does not say.
      logits: maps uint8 [n, height, width, channels] to float32 [n, num_classes].
      image_shape: height, width, channels.
      num_classes: width of the logits.
      data_dir: of the data set it was trained on; None is the bundled MNIST.
      data_checksum: of that data set; None if that is not known.
      validation_examples: that its training set apart.
      validation_split: how it chose them: `stratified`, or the `last`.
      validation_seed: of that choice.
    """

    name: str
    step: int | None
    moving_average: bool | None
    logits: LogitsFunction
    image_shape: tuple[int, int, int]
    num_classes: int
    data_dir: str | None
    data_checksum: str | None
    validation_examples: int
    validation_split: str
    validation_seed: int

    @classmethod
    def of_checkpoint(
        cls, trained: TrainedModel, strategy: tf.distribute.Strategy
    ) -> LoadedModel:
        """Takes a model that was loaded in the strategy's scope."""
        config = trained.config
        return cls(
            name=trained.checkpoint,
            step=trained.step,
            moving_average=trained.uses_ema,
            logits=create_logits_function(strategy, trained.state),
            image_shape=config.image_shape,
            num_classes=config.num_classes,
            data_dir=config.data_dir,
            data_checksum=config.data_checksum,
            validation_examples=config.validation_examples,
            validation_split=config.validation_split,
            validation_seed=config.seed,
        )

    @classmethod
    def of_saved_model(cls, directory: str) -> LoadedModel:
        """Loads a SavedModel, or the newest version in a directory.

        Raises:
          InputError: there is none, or it is damaged.
        """
        path = find_saved_model(directory)
        card = load_model_card(path) or {}
        classifier = load_classifier(path)
        data = card.get("data") or {}
        how, seed = _validation_draw(card, path)
        return cls(
            name=path,
            step=card.get("step"),
            moving_average=card.get("moving_average"),
            logits=lambda images: classifier.classify(images)[1],
            image_shape=classifier.image_shape,
            num_classes=classifier.num_classes,
            data_dir=data.get("data_dir"),
            data_checksum=data.get("sha256"),
            validation_examples=data.get("validation_examples") or 0,
            validation_split=how,
            validation_seed=seed,
        )


def _validation_draw(card: Mapping[str, Any], path: str) -> tuple[str, int]:
    """Returns how a run chose its validation examples, as the card of its export says.

    Raises:
      InputError: it says what cannot be.
    """
    told = card.get("settings") or {}
    settings = EARLIER_SETTINGS | {k: v for k, v in told.items() if v is not None}
    how, seed = settings["validation_split"], settings.get("seed", 0)
    if how not in VALIDATION_SPLITS or not 0 <= seed < 1 << 32:
        raise InputError(
            f"{path!r}: the model card has the validation_split {how!r} and the seed "
            f"{seed}, expected {' or '.join(VALIDATION_SPLITS)} and 0 to {(1 << 32) - 1}"
        )
    return how, seed


def load_data(
    models: Sequence[LoadedModel],
    *,
    data: Dataset | tuple[np.ndarray, np.ndarray] | None,
    data_dir: str | None,
    split: str,
) -> EvaluationData:
    """Loads what all the models are evaluated on, by default what they trained on.

    Raises:
      InputError: the models do not fit each other, or the data do not fit them.
    """
    first = models[0]
    _check_alike(models, is_data_given=bool(data or data_dir), split=split)
    fit: dict[str, Any] = {
        "image_shape": first.image_shape,
        "num_classes": first.num_classes,
    }
    if isinstance(data, Dataset):
        return select_split(data, split, **fit)
    if data is not None:
        return arrays_as_data(*data, **fit)
    found = load_evaluation_data(
        split,
        data_dir=data_dir or first.data_dir,
        validation_examples=first.validation_examples,
        validation_split=first.validation_split,
        validation_seed=first.validation_seed,
        **fit,
    )
    if not data_dir:
        for model in models:
            warn_of_other_data(model.name, expected=model.data_checksum, data=found)
    return found


def _check_alike(
    models: Sequence[LoadedModel], *, is_data_given: bool, split: str
) -> None:
    compared = ["image_shape", "num_classes"]
    compared += [] if is_data_given else ["data_dir"]
    compared += [] if split == "test" else ["validation_examples"]
    first = models[0]
    if split != "test" and first.validation_examples:
        compared += ["validation_split", "validation_seed"]
    for other in models[1:]:
        for name in compared:
            found, expected = getattr(other, name), getattr(first, name)
            if found != expected:
                raise InputError(
                    f"{other.name} has the {name} {found}, expected {expected} as "
                    f"{first.name} has, for an ensemble"
                )
