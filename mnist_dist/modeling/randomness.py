"""Random numbers that depend only on the seed and an example's place in the stream.

Augmentation and dropout draw, for the example at stream position p, from the
blocks of one Philox sequence that belong to p. A replica's examples are
consecutive positions, so its draws are one slice of that sequence: the same
numbers whether the global batch lies on one replica or on eight, with or without
XLA, before and after a restart.
"""

import collections
import contextlib
import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

_PHILOX = 1  # tf.random.Algorithm.PHILOX.value
_WORDS_PER_BLOCK = 4  # a Philox counter value yields four 32-bit words
_DROPOUT_CALLS = (keras.layers.Dropout.call, keras.layers.SpatialDropout1D.call)


def uniform_by_position(
    first_position: tf.Tensor,
    *,
    num_examples: int,
    values_per_example: int,
    seed: int,
    purpose: int,
    draw: int = 0,
) -> tf.Tensor:
    """Draws uniform numbers for the examples at consecutive stream positions.

    Args:
      first_position: int64 scalar, stream position of the first example.
      num_examples: how many consecutive examples.
      values_per_example: how many numbers each.
      seed: the run's seed.
      purpose: tells apart independent uses of the same seed.
      draw: tells apart draws for the same purpose.

    Returns:
      float32 [num_examples, values_per_example] in [0, 1).

    Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
    """
    blocks = -(-values_per_example // _WORDS_PER_BLOCK)
    key = _entropy(seed, purpose, draw).generate_state(1, np.uint64)
    counter = tf.cast(first_position * blocks, tf.uint64)
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[num_examples, blocks * _WORDS_PER_BLOCK],
        key=tf.constant(key),
        counter=tf.stack([counter, tf.zeros_like(counter)]),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    # 24 bits fill a float32's mantissa. The conversion is ours because XLA's and
    # the kernels' own ones give different floats for the same words.
    bits = tf.bitwise.right_shift(words[:, :values_per_example], np.uint32(8))
    return tf.cast(tf.bitcast(bits, tf.int32), tf.float32) * 2.0**-24


class _Trace(NamedTuple):
    first_position: tf.Tensor
    num_examples: int
    num_draws: collections.Counter[int]  # so far, for each purpose


_tracing = threading.local()  # Mirrored traces each replica in a thread of its own


@contextlib.contextmanager
def at_position(first_position: tf.Tensor, *, num_examples: int) -> Iterator[None]:
    """Tells the layers called inside which stretch of the stream their batch is.

    Layers that draw more than once inside draw anew each time. The count starts here,
    so that each trace of the same code, as after a restart, gives the same draws.

    Args:
      first_position: int64 scalar, stream position of the first example.
      num_examples: how many consecutive examples.
    """
    _tracing.trace = _Trace(first_position, num_examples, collections.Counter())
    try:
        yield
    finally:
        del _tracing.trace


def make_layers_follow_stream(model: keras.Model, *, seed: int) -> None:
    """Makes the model's random layers draw by stream position.

    Keras gives every replica the same dropout mask. After this call, inside
    `at_position`, `Dropout` and the spatial dropouts draw each example's mask from
    its own position; what draws with another `keras.random.SeedGenerator` of the
    model gets a seed of its own for each step and replica (so this alone depends on
    the number of replicas, and on XLA, which draws other numbers from a seed). What
    draws without a generator is left as it is.
    """
    for purpose, source in enumerate(_random_sources(model), start=1):
        if isinstance(source, keras.random.SeedGenerator):
            source.next = _seed_by_position(source, seed=seed, purpose=purpose)
        else:
            source.call = _dropout_by_position(source, seed=seed, purpose=purpose)


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Returns what the model's layers draw with, under whatever name they keep it."""
    return [g for layer in model._flatten_layers() for g in layer._seed_generators]


def _random_sources(
    model: keras.Model,
) -> list[keras.layers.Dropout | keras.random.SeedGenerator]:
    # The order must stay: it numbers the draws, and runs go on with theirs.
    sources: dict[keras.layers.Dropout | keras.random.SeedGenerator, None] = {}
    for layer in model._flatten_layers():
        # A subclass with a call of its own drops in its own way, with its generator.
        is_dropout = type(layer).call in _DROPOUT_CALLS
        sources |= dict.fromkeys([layer] if is_dropout else layer._seed_generators)
    return list(sources)


def _dropout_by_position(layer: keras.layers.Dropout, *, seed: int, purpose: int):
    keras_call = layer.call
    for generator in layer._seed_generators:
        generator.next = _seed_by_position(generator, seed=seed, purpose=purpose)

    def call(inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        trace: _Trace | None = getattr(_tracing, "trace", None)
        shape = inputs.shape
        if (
            not training
            or layer.rate in (0, 1)
            or trace is None
            or not shape.is_fully_defined()
            or shape[0] % trace.num_examples  # not so many rows for each example
        ):
            return keras_call(inputs, training=training)
        if layer.noise_shape is not None:
            mask_shape = [n or d for n, d in zip(layer.noise_shape, shape, strict=True)]
        elif hasattr(layer, "_get_noise_shape"):  # the spatial dropouts
            mask_shape = [int(n) for n in layer._get_noise_shape(inputs)]
        else:
            mask_shape = shape
        # A reshape may have made several rows of an example, which follow each other.
        rows_per_example = shape[0] // trace.num_examples
        uniform = uniform_by_position(
            trace.first_position,
            num_examples=trace.num_examples,
            values_per_example=rows_per_example * math.prod(mask_shape[1:]),
            seed=seed,
            purpose=purpose,
            draw=_count_draw(trace, purpose),
        )
        keep = tf.reshape(uniform >= layer.rate, [shape[0], *mask_shape[1:]])
        scale = tf.constant(1.0 / (1.0 - layer.rate), inputs.dtype)
        return inputs * tf.where(keep, scale, tf.zeros([], inputs.dtype))

    return call


def _seed_by_position(
    generator: keras.random.SeedGenerator, *, seed: int, purpose: int
):
    keras_next = generator.next

    def next_seed(ordered: bool = True) -> tf.Tensor:
        trace: _Trace | None = getattr(_tracing, "trace", None)
        if trace is None:
            return keras_next(ordered=ordered)
        entropy = _entropy(seed, purpose, _count_draw(trace, purpose))
        key = int(entropy.generate_state(1, np.uint32)[0])
        return tf.stack([tf.constant(key, tf.int64), trace.first_position])

    return next_seed


def _count_draw(trace: _Trace, purpose: int) -> int:
    trace.num_draws[purpose] += 1
    return trace.num_draws[purpose] - 1


def _entropy(seed: int, purpose: int, draw: int) -> np.random.SeedSequence:
    # The first draw has no number, as in earlier versions: their runs go on.
    return np.random.SeedSequence([seed, purpose, draw][: 3 if draw else 2])
