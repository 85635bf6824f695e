"""Random affine changes of images, drawn by stream position."""

import math

import numpy as np
import tensorflow as tf

from mnist_dist.modeling.randomness import uniform_by_position

_PURPOSE = 0  # randomness.py counts the model's random layers from 1
MAX_ROTATION = 12.0  # degrees
MAX_SCALE = 0.12  # relative
MAX_SHEAR = 0.12
MAX_SHIFT = 0.08  # of the image's side: two pixels of MNIST's 28


def augment(images: tf.Tensor, first_position: tf.Tensor, *, seed: int) -> tf.Tensor:
    """Rotates, scales, shears and shifts each image by a little, at random.

    Args:
      images: float [batch, height, width, channels].
      first_position: int64 scalar, stream position of the first image.
      seed: the run's seed.

    Returns:
      Images of the same shape and dtype; what comes in from outside is 0.
    """
    uniform = uniform_by_position(
        first_position,
        num_examples=images.shape[0],
        values_per_example=6,
        seed=seed,
        purpose=_PURPOSE,
    )
    signed = tf.unstack(2.0 * uniform - 1.0, axis=1)
    angle = signed[0] * (MAX_ROTATION * math.pi / 180.0)
    scale_y, scale_x = 1.0 + signed[1] * MAX_SCALE, 1.0 + signed[2] * MAX_SCALE
    shear = signed[3] * MAX_SHEAR
    cos, sin = tf.cos(angle), tf.sin(angle)
    matrix = tf.stack(
        [
            tf.stack([cos * scale_y, (shear * cos - sin) * scale_x], axis=1),
            tf.stack([sin * scale_y, (shear * sin + cos) * scale_x], axis=1),
        ],
        axis=1,
    )
    height, width = images.shape[1:3]
    shift = tf.stack([signed[4] * height, signed[5] * width], axis=1) * MAX_SHIFT
    return transform(images, matrix, shift)


def transform(images: tf.Tensor, matrix: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Resamples images at `matrix @ (pixel - centre) + centre + shift`, bilinearly.

    Args:
      images: float [batch, height, width, channels].
      matrix: float32 [batch, 2, 2], rows and columns in (y, x) order.
      shift: float32 [batch, 2], in pixels.

    Returns:
      Images of the same shape and dtype; pixels outside the image count as 0.
    """
    # Written as gathers because XLA cannot compile ImageProjectiveTransformV3.
    batch, height, width, channels = images.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2], np.float32)
    grid = np.moveaxis(np.indices((height, width), np.float32), 0, -1)
    offsets = tf.constant((grid - centre).reshape(-1, 2))
    source = _move(offsets, matrix) + (centre + shift)[:, None]
    corner = tf.floor(source)
    fraction = source - corner
    corner = tf.cast(corner, tf.int64)  # int32 would be added on a GPU's host

    # A frame of zeros wide enough for every clipped neighbour.
    framed = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    pixels = tf.reshape(framed, [batch, (height + 2) * (width + 2), channels])

    def pixel(dy: int, dx: int) -> tf.Tensor:
        y = tf.clip_by_value(corner[..., 0] + (dy + 1), 0, height + 1)
        x = tf.clip_by_value(corner[..., 1] + (dx + 1), 0, width + 1)
        return tf.gather(pixels, y * (width + 2) + x, axis=1, batch_dims=1)

    weight = tf.cast(fraction, images.dtype)
    wy, wx = weight[..., 0, None], weight[..., 1, None]
    top = pixel(0, 0) * (1 - wx) + pixel(0, 1) * wx
    bottom = pixel(1, 0) * (1 - wx) + pixel(1, 1) * wx
    return tf.reshape(top * (1 - wy) + bottom * wy, images.shape)


def _move(points: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Returns `matrix @ point` for each point, in full float32.

    Args:
      points: float32 [points, 2].
      matrix: float32 [batch, 2, 2].

    Returns:
      float32 [batch, points, 2].
    """
    if not tf.config.list_logical_devices("GPU"):
        return tf.einsum("bij,pj->bpi", matrix, points)
    # A GPU's product rounds to TF32: 0.01 pixel. On CPUs these are not quite its bits.
    columns = matrix[:, None]
    return columns[..., 0] * points[:, None, 0] + columns[..., 1] * points[:, None, 1]
