"""Every variable of a run, and the name it has in a checkpoint."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mnist_dist.errors import InputError
from mnist_dist.modeling.randomness import seed_generators

SUMS = ("loss", "correct", "examples", "nonfinite_steps")


class Values(NamedTuple):
    """What an update changes: tensors, each as `TrainState` describes its variable."""

    parameters: list[tf.Tensor]
    statistics: list[tf.Tensor]
    slots: dict[str, list[tf.Tensor]]
    ema: list[tf.Tensor]


class TrainState:
    """The variables that a step changes; build it inside the strategy's scope.

    A run is its state: what `to_arrays` returns is all that a checkpoint holds, and
    training goes on from `from_arrays` of it bit for bit.

    Attributes:
      model: the Keras model, whose layers compute with `parameters`.
      keras_parameters, keras_statistics: the Keras variables of the next two.
      keras_weights: both, in the order of `inference_weights()`.
      weight_paths: `<layer>/<weight>` of each of `keras_weights`.
      parameters: the trained variables, float32.
      statistics: variables that the forward pass moves, as batch normalisation's,
        then those of frozen layers, which nothing changes.
      num_moving: how many of `statistics` are of the first kind.
      slots: for each slot name of the update rule, one variable a parameter.
      ema: moving average of `parameters` then `statistics`; empty when not kept.
      step: int64, updates done.
      sums: float64, what `SUMS` names, since the last training summary.
      nonfinite_streak: int64, the latest steps in a row that were skipped.
      loss_scale: float32 [scale, finite steps since it changed]; None unless float16.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        slot_names: Sequence[str],
        with_ema: bool = False,
        with_loss_scale: bool = False,
    ) -> None:
        self.model = model
        seeds = {id(generator.state) for generator in seed_generators(model)}
        self.keras_parameters = list(model.trainable_variables)
        frozen = _frozen_variables(model)
        # The frozen last: nothing moves them.
        self.keras_statistics = sorted(
            (v for v in model.non_trainable_variables if id(v) not in seeds),
            key=lambda v: id(v) in frozen,
        )
        self.keras_weights = self.keras_parameters + self.keras_statistics
        self.num_moving = sum(id(v) not in frozen for v in self.keras_statistics)
        self.parameters = [v.value for v in self.keras_parameters]
        self.statistics = [v.value for v in self.keras_statistics]
        self.slots = {
            name: [_variable(tf.zeros_like(v)) for v in self.parameters]
            for name in slot_names
        }
        weights = self.parameters + self.statistics
        self.ema = [_variable(tf.identity(v)) for v in weights] if with_ema else []
        self.step = _variable(tf.zeros([], tf.int64))
        self.sums = {name: _variable(tf.zeros([], tf.float64)) for name in SUMS}
        self.nonfinite_streak = _variable(tf.zeros([], tf.int64))
        self.loss_scale = (
            _variable(tf.constant([2.0**15, 0.0])) if with_loss_scale else None
        )

        self._named: dict[str, tf.Variable] = {
            "step": self.step,
            "nonfinite_streak": self.nonfinite_streak,
        }
        self.weight_paths = [weight_path(model, v) for v in self.keras_weights]
        paths = self.weight_paths
        for path, variable in zip(paths, weights, strict=True):
            if f"model/{path}" in self._named:
                raise InputError(f"--model: two weights are named {path!r}")
            self._named[f"model/{path}"] = variable
        for slot, variables in self.slots.items():
            for path, variable in zip(paths, variables, strict=False):
                self._named[f"optimizer/{slot}/{path}"] = variable
        for path, variable in zip(paths, self.ema, strict=False):
            self._named[f"ema/{path}"] = variable
        for name, variable in self.sums.items():
            self._named[f"sums/{name}"] = variable
        if self.loss_scale is not None:
            self._named["loss_scale"] = self.loss_scale

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Copies every variable to the host, by its checkpoint name."""
        return {name: variable.numpy() for name, variable in self._named.items()}

    def specs(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of every variable, by its checkpoint name."""
        return {
            name: (tuple(v.shape), np.dtype(v.dtype.as_numpy_dtype))
            for name, v in self._named.items()
        }

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets every variable that `arrays` names, on all replicas; others stay.

        Names that no variable has are ignored.
        """
        for name, variable in self._named.items():
            if name in arrays:
                variable.assign(arrays[name])

    def read_values(self) -> Values:
        """Returns the variables' values on this replica, as tensors of a graph."""
        return tf.nest.map_structure(tf.identity, self._variables())

    def assign_values(self, values: Values) -> None:
        """Sets this replica's copies of the variables, in a graph."""
        for variable, value in zip(
            tf.nest.flatten(self._variables()), tf.nest.flatten(values), strict=True
        ):
            variable.assign(value)

    def reset_sums(self) -> None:
        """Starts a new training summary."""
        for variable in self.sums.values():
            variable.assign(0.0)

    def inference_weights(self) -> list[tf.Variable]:
        """What to evaluate and export, parameters then statistics: the average if kept."""
        return self.ema or self.parameters + self.statistics

    def _variables(self) -> Values:
        return Values(self.parameters, self.statistics, self.slots, self.ema)


def weight_path(model: keras.Model, variable: keras.Variable) -> str:
    """Returns `<layer>/<weight>`: the Keras path without the model's own name."""
    return variable.path.removeprefix(f"{model.name}/")


def _frozen_variables(model: keras.Model) -> set[int]:
    layers = model._flatten_layers(include_self=False)
    return {id(v) for layer in layers if not layer.trainable for v in layer.variables}


def _variable(value: tf.Tensor) -> tf.Variable:
    return tf.Variable(value, trainable=False)
