"""Whether XLA compiles the loops of a model: where it can, and makes them faster."""

import functools
import re

import keras
import tensorflow as tf
from absl import logging

from mnist_dist.device.strategy import device_type
from mnist_dist.errors import InputError
from mnist_dist.modeling.forward_pass import run_forward_pass


def should_compile(
    choice: str,
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    *,
    image_shape: tuple[int, int, int],
) -> bool:
    """Whether XLA compiles the loops.

    Args:
      choice: `on`, `off`, or `auto`: where XLA can compile the model and makes it
        faster, which it does not where a CPU convolves or pools.
      model: what they compute.
      strategy: on what.
      image_shape: height, width, channels.

    Raises:
      InputError: `on`, and XLA cannot compile the model.
    """
    if choice == "off":
        return False
    device = device_type(strategy)
    passes, specs = _trace_passes(model, image_shape)
    if choice == "auto" and device == "CPU" and _is_slow_on_cpu(passes, specs):
        return False
    obstacle = _obstacle_to_xla(passes, specs, device)
    if strategy.num_replicas_in_sync > 1 and any(
        getattr(layer, "synchronized", False) for layer in model._flatten_layers()
    ):
        obstacle = "a layer synchronizes replicas inside the step"
    if obstacle and choice == "on":
        raise InputError(
            f"--enable_xla: found on, but XLA cannot compile {model.name!r}: "
            f"{obstacle}; expected auto or off"
        )
    if obstacle:
        logging.warning("XLA is off: it cannot compile %r: %s", model.name, obstacle)
    return not obstacle


def _trace_passes(
    model: keras.Model, image_shape: tuple[int, int, int]
) -> tuple[tf.types.experimental.PolymorphicFunction, list[tf.TensorSpec]]:
    """The passes that the loops make, as a function of images and all variables."""
    trained = model.trainable_variables
    ids = {id(v) for v in trained}
    variables = trained + [v for v in model.variables if id(v) not in ids]

    @tf.function(jit_compile=True, autograph=False)
    def passes(images: tf.Tensor, *values: tf.Tensor) -> list[tf.Tensor]:
        run = functools.partial(
            run_forward_pass, model, images, variables=variables, values=values
        )
        parameters = values[: len(trained)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            forward = run(training=True)
            sums = [tf.reduce_sum(x) for x in [forward.logits, *forward.penalties]]
            loss = tf.add_n([tf.cast(x, tf.float32) for x in sums])
        return [*tape.gradient(loss, parameters), run(training=False).logits]

    # Two images: one could be taken for none, as by tf.squeeze.
    specs = [tf.TensorSpec((2, *image_shape), tf.float32)]
    specs += [tf.TensorSpec(v.shape, v.dtype) for v in variables]
    passes.get_concrete_function(*specs)
    return passes, specs


def _is_slow_on_cpu(
    passes: tf.types.experimental.PolymorphicFunction, specs: list[tf.TensorSpec]
) -> bool:
    graph = passes.get_concrete_function(*specs).graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    return any("Conv" in node.op or "Pool" in node.op for node in nodes)


def _obstacle_to_xla(
    passes: tf.types.experimental.PolymorphicFunction,
    specs: list[tf.TensorSpec],
    device: str,
) -> str | None:
    """Why XLA cannot compile the passes for a device, or None if it can.

    XLA says so when it translates them, a tenth of a second before it would compile.
    """
    try:
        passes.experimental_get_compiler_ir(*specs)(stage="hlo", platform_name=device)
    except (ValueError, tf.errors.OpError) as error:
        missing = sorted(set(re.findall(r"(\w+) \(No registered", str(error))))
        if missing:
            return f"it has no {' and no '.join(missing)}"
        return str(error).partition("\n")[0]
    return None
