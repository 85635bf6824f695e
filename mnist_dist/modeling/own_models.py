"""Models that a user brings: found, built, and refused where they cannot be trained."""

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from mnist_dist.errors import InputError, OwnCodeError, PeerError, RunError

_BOLD = re.compile(r"\x1b\[[0-9;]*m")  # and its end, which Keras puts into its messages


def import_function(name: str) -> Callable[..., keras.Model]:
    """Imports the function that `module:function` names.

    Raises:
      InputError: there is no such function.
      OwnCodeError: the module cannot be imported, for a fault in it.
    """
    module_name, _, function_name = name.partition(":")
    with running_own_code(name, doing="its module cannot be imported"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if f"{module_name}.".startswith(f"{missing}."):
                expected = (
                    "it on PYTHONPATH or in the working directory"
                    if os.getcwd() in sys.path
                    else f"it on PYTHONPATH, or --model={name} on the command line, "
                    "which looks in the working directory too"
                )
                raise InputError(
                    f"--model: cannot load {name!r}: {error}; expected {expected}"
                ) from error
            raise
        except (TypeError, ValueError) as error:  # `a..b:c`, `:c`
            raise InputError(f"--model: cannot load {name!r}: {error}") from error
    function = getattr(module, function_name, None)
    if function is None:
        raise InputError(
            f"--model: cannot load {name!r}: module {module_name!r} has no attribute "
            f"{function_name!r}"
        )
    if not callable(function):
        raise InputError(f"--model: found {name!r}, which is not a function")
    return function


def call_function(
    function: Callable[..., keras.Model], name: str, **arguments: Any
) -> keras.Model:
    """Calls the function that builds a model; `dropout` only if it takes that.

    Raises:
      InputError: it takes other arguments, or returns no model.
      OwnCodeError: it raises.
    """
    dropout = arguments.pop("dropout")
    try:
        signature = inspect.signature(function)
        if "dropout" in signature.parameters:
            arguments["dropout"] = dropout
        signature.bind(**arguments)
    except (TypeError, ValueError) as error:  # ValueError: written in C, without one
        raise InputError(
            f"--model: {name!r} takes no image_shape and num_classes alone: {error}"
        ) from error
    if dropout and "dropout" not in arguments:
        raise InputError(f"--dropout: found {dropout}, but {name!r} takes no `dropout`")
    with running_own_code(name, doing="it cannot be built"):
        model = function(**arguments)
    if not isinstance(model, keras.Model):
        raise InputError(
            f"--model: {name!r} returned {type(model).__name__}, expected a keras.Model"
        )
    return model


def check_model(
    model: keras.Model, name: str, *, image_shape: tuple[int, ...], num_classes: int
) -> None:
    """Checks that a model maps images to logits, and builds its variables.

    Raises:
      InputError: it takes another input, or gives another output.
      OwnCodeError: a layer of it raises.
    """
    wanted = (None, *image_shape)
    inputs = getattr(model, "inputs", None)  # a subclassed model has none yet
    if inputs:
        shapes = [tuple(i.shape) for i in inputs]
        if len(shapes) != 1 or len(shapes[0]) != len(wanted):
            raise InputError(
                f"--model: {name!r} takes {' and '.join(map(str, shapes))}, expected "
                f"one input, images {wanted}"
            )
    with running_own_code(name, doing=f"it does not take images {wanted}"):
        output = model(keras.KerasTensor(wanted))
    if not hasattr(output, "shape"):
        count = len(output) if isinstance(output, list | tuple | dict) else "no"
        raise InputError(
            f"--model: {name!r} gives {count} outputs ({type(output).__name__}), "
            f"expected one, logits (None, {num_classes})"
        )
    if tuple(output.shape) != (None, num_classes):
        raise InputError(
            f"--model: {name!r} maps images {wanted} to {tuple(output.shape)}, "
            f"expected (None, {num_classes})"
        )


def check_variables(
    model: keras.Model, name: str, *, image_shape: tuple[int, int, int]
) -> None:
    """Checks that Keras knows every variable that a model computes with.

    One that a layer hides, as a raw `tf.Variable` in a list of its own, would be
    neither trained nor saved.

    Raises:
      InputError: a layer hides a variable.
      OwnCodeError: a layer raises.
    """

    @tf.function(autograph=False)
    def infer(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    spec = tf.TensorSpec((None, *image_shape), tf.float32)
    with running_own_code(name, doing="it cannot be traced"):
        used = infer.get_concrete_function(spec).graph.variables
    known: set[int] = set()
    for variable in (v.value for v in model.variables):
        known |= {id(variable), *map(id, getattr(variable, "values", ()))}
    hidden = sorted(v.name for v in used if id(v) not in known)
    if hidden:
        raise InputError(
            f"--model: {name!r} computes with variables that Keras does not know "
            f"({', '.join(hidden)}), expected those of `add_weight` alone: others are "
            "neither trained nor saved"
        )


def warn_of_habits(model: keras.Model, name: str) -> None:
    """Warns of what other training loops want of a model, and this one does not."""
    layers = model._flatten_layers(include_self=False)
    layers = [layer for layer in layers if not hasattr(layer, "layers")]
    activation = getattr(layers[-1], "activation", None) if layers else None
    if activation is keras.activations.softmax or (
        layers and isinstance(layers[-1], keras.layers.Softmax)
    ):
        logging.warning(
            "--model: the last layer of %r, %r, applies softmax; the loss expects "
            "logits, and trains worse on probabilities: leave the activation out",
            name,
            layers[-1].name,
        )
    for layer in layers:
        if isinstance(layer, keras.layers.Rescaling) and _max(layer.scale) < 0.1:
            logging.warning(
                "--model: layer %r of %r scales its input by %g; images already come "
                "in [0, 1]: leave the layer out",
                layer.name,
                name,
                _max(layer.scale),
            )


def _max(scale: Any) -> float:
    return max(scale) if isinstance(scale, list | tuple) else float(scale)


@contextlib.contextmanager
def running_own_code(name: str, *, doing: str) -> Iterator[None]:
    """Turns what a user's code raises into an `OwnCodeError`.

    Errors of ours, and of TensorFlow's kernels and connections, stay what they are.

    Args:
      name: of the model, for the message.
      doing: what fails then, for the message.
    """
    try:
        yield
    except (InputError, RunError, PeerError, tf.errors.OpError):
        raise
    # Nearly anything: the code is the user's.
    except Exception as error:
        text = " ".join(_BOLD.sub("", str(error)).split())
        raise OwnCodeError(
            f"--model: {name!r}: {doing}: {type(error).__name__}: {text[:300]}"
        ) from error
