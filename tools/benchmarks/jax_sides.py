"""The side that JAX computes: a pass over all batches as one compiled `scan`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side import CreateSide, Rank, Side
from benchmarks.work import (
    EPSILON,
    IMAGE_SHAPE,
    LEARNING_RATE,
    Case,
    first_weights,
    training_batches,
)

_BETA_1, _BETA_2 = 0.9, 0.999


def create_sides(rank: Rank) -> dict[str, CreateSide]:
    """Returns how each side is made in this process."""
    del rank
    return {"JAX scan": scan}


def _apply_network(
    weights: list[jax.Array], images: jax.Array, dtype: str = "float32"
) -> jax.Array:
    """Maps images [batch, height, width, 1] to logits; the last layer is in float32."""
    x = images
    for number in range(0, len(weights), 2):
        kernel, bias = weights[number : number + 2]
        if number:
            x = jax.nn.relu(x)
        if number == len(weights) - 2:
            dtype = "float32"
        x, kernel, bias = x.astype(dtype), kernel.astype(dtype), bias.astype(dtype)
        if kernel.ndim == 4:
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            x = x.reshape(len(x), -1) @ kernel
        x += bias
    return x


def _compute_loss(
    weights: list[jax.Array], images: jax.Array, labels: jax.Array, *, dtype: str
) -> jax.Array:
    images = images.astype(jnp.float32) / 255.0
    log_probabilities = jax.nn.log_softmax(_apply_network(weights, images, dtype))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def scan(case: Case) -> Side:
    """Adam, as Keras has it, over all batches in one call."""
    weights = [jnp.asarray(w) for w in first_weights(case.model)]
    zeros = [jnp.zeros_like(w) for w in weights]
    carry = (jnp.zeros((), jnp.int32), weights, zeros, zeros)
    images, labels = training_batches(case)
    batches = (
        jnp.asarray(images.reshape(case.steps, case.batch, *IMAGE_SHAPE)),
        jnp.asarray(labels.reshape(case.steps, case.batch).astype(np.int32)),
    )
    differentiate = jax.value_and_grad(
        functools.partial(_compute_loss, dtype=case.dtype)
    )

    def step(carry, batch):
        count, weights, first, second = carry
        loss, gradients = differentiate(weights, *batch)
        count += 1
        t = count.astype(jnp.float32)
        rate = LEARNING_RATE * jnp.sqrt(1 - _BETA_2**t) / (1 - _BETA_1**t)
        first = [
            m + (g - m) * (1 - _BETA_1) for m, g in zip(first, gradients, strict=True)
        ]
        second = [
            v + (g * g - v) * (1 - _BETA_2)
            for v, g in zip(second, gradients, strict=True)
        ]
        weights = [
            w - rate * m / (jnp.sqrt(v) + EPSILON)
            for w, m, v in zip(weights, first, second, strict=True)
        ]
        return (count, weights, first, second), loss

    run = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches))
    predict = jax.jit(_apply_network)

    def train() -> None:
        nonlocal carry
        carry, losses = run(carry, batches)
        losses.block_until_ready()

    return Side(train, lambda images: np.asarray(predict(carry[1], images)))
