"""Gathers examples where they lie, by kernels that both CPUs and GPUs have.

TensorFlow has no kernel that gathers uint8 on a GPU, and keeps int32 in the host's
memory: it would copy the whole data set to the host in each step. So images are
gathered as rows of int64 words, and labels and indices are int64. Where XLA compiles the
gathering, nothing is copied: it takes uint8, and is faster with int32.
"""

import math

import tensorflow as tf

_WORD_BYTES = 8


def index_dtype(*, is_compiled: bool) -> tf.DType:
    """Returns the dtype of labels and indices in a step."""
    return tf.int32 if is_compiled else tf.int64


def rows_for_gather(
    images: tf.Tensor, labels: tf.Tensor, *, is_compiled: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Prepares the examples of a call for its steps, where possible without a copy.

    Args:
      images: uint8 [n, height, width, channels].
      labels: int64 [n].
      is_compiled: whether XLA compiles the steps together with the gathering.

    Returns:
      Images as rows, which XLA gathers faster than blocks: uint8 [n, bytes] if compiled,
      else int64 [n, words], the last word filled up with zeros; and labels [n].
    """
    rows = tf.reshape(images, [images.shape[0], -1])
    labels = tf.cast(labels, index_dtype(is_compiled=is_compiled))
    if is_compiled:
        return rows, labels
    missing = -rows.shape[1] % _WORD_BYTES
    if missing:
        rows = tf.pad(rows, [[0, 0], [0, missing]])
    num_words = rows.shape[1] // _WORD_BYTES
    rows = tf.bitcast(tf.reshape(rows, [-1, num_words, _WORD_BYTES]), tf.int64)
    return rows, labels


def gather_images(
    rows: tf.Tensor, indices: tf.Tensor, *, image_shape: tuple[int, int, int]
) -> tf.Tensor:
    """Gathers images.

    Args:
      rows: as `rows_for_gather` returns them.
      indices: int64 or int32 [batch].
      image_shape: height, width, channels.

    Returns:
      uint8 [batch, height, width, channels].
    """
    gathered = tf.gather(rows, indices)
    batch, num_bytes = indices.shape[0], math.prod(image_shape)
    if gathered.dtype == tf.int64:
        gathered = tf.reshape(tf.bitcast(gathered, tf.uint8), [batch, -1])
        gathered = gathered[:, :num_bytes]
    return tf.reshape(gathered, [batch, *image_shape])
