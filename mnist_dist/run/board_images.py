"""Pictures for TensorBoard."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.util.tensor_util import make_tensor_proto

_CELL_PIXELS = 24  # of a confusion matrix, which TensorBoard would blur
_PICTURE_PIXELS = 84  # least width of an image with a caption
_FONT_PIXELS, _LINE_PIXELS = 13, 16


def draw_confusion(confusion: np.ndarray) -> np.ndarray:
    """Draws a confusion matrix's rows as shares, the darker the larger.

    The square root makes the few mistakes visible beside the many right answers.

    Args:
      confusion: int [num_classes, num_classes].

    Returns:
      uint8 [pixels, pixels, 1].
    """
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shade = 255 - np.round(255 * np.sqrt(confusion / totals))
    cell = np.ones((_CELL_PIXELS, _CELL_PIXELS))
    return np.kron(shade, cell).astype(np.uint8)[..., np.newaxis]


def draw_grid(images: np.ndarray, *, columns: int) -> np.ndarray:
    """Lays images out in rows, with a line of one pixel between them.

    Args:
      images: uint8 [n, height, width, channels], at least one.
      columns: images in a row.

    Returns:
      uint8 [rows x (height + 1), columns x (width + 1), channels].
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, height + 1, width + 1, channels), np.uint8)
    grid[:, height] = grid[:, :, width] = 128
    grid[:count, :height, :width] = images
    grid = grid.reshape(rows, columns, height + 1, width + 1, channels)
    return grid.swapaxes(1, 2).reshape(
        rows * (height + 1), columns * (width + 1), channels
    )


def draw_captioned_grid(
    images: np.ndarray, captions: Sequence[Sequence[str]], *, columns: int
) -> np.ndarray:
    """Lays images out in rows, each enlarged to legible size with its caption below.

    Args:
      images: uint8 [n, height, width, channels], at least one.
      captions: the lines below each image, as many for each; what is too long for its
        image is cut.
      columns: images in a row.

    Returns:
      uint8 [rows x (height + 1), columns x (width + 1), 3], of the enlarged height and
      width.
    """
    scale = -(-_PICTURE_PIXELS // images.shape[2])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    images = np.broadcast_to(images, (*images.shape[:-1], 3))
    font = ImageFont.load_default(size=_FONT_PIXELS)
    cells = []
    for image, lines in zip(images, captions, strict=True):
        height, width, _ = image.shape
        cell = Image.new("RGB", (width, height + len(lines) * _LINE_PIXELS), "white")
        cell.paste(Image.fromarray(np.ascontiguousarray(image)))
        draw = ImageDraw.Draw(cell)
        for number, line in enumerate(lines):
            while draw.textlength(line, font) > width - 2:
                line = line[:-1]
            draw.text((1, height + number * _LINE_PIXELS), line, "black", font)
        cells.append(np.asarray(cell))
    return draw_grid(np.stack(cells), columns=columns)


def image_pb(tag: str, image: np.ndarray) -> Summary:
    """Returns an image, uint8 [height, width, channels], as TensorBoard shows it."""
    with tf.device("/CPU:0"):
        png = tf.io.encode_png(image).numpy()
    height, width, _ = image.shape
    # As `tf.summary.image` lays it out.
    tensor = make_tensor_proto([f"{width}".encode(), f"{height}".encode(), png])
    metadata = create_summary_metadata(display_name=None, description=None)
    summary = Summary()
    summary.value.add(tag=tag, tensor=tensor, metadata=metadata)
    return summary


def draw_filters(kernel: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Draws what each unit of a first layer looks for: grey is 0, white the most.

    Args:
      kernel: of a convolution, float [height, width, channels, units]; or of a dense
        layer on flattened images, float [pixels x channels, units].
      image_shape: (height, width, channels) of the images.

    Returns:
      uint8 [pixels, pixels, 1 or 3], a square of all units, where what is not finite
      is grey; or, of a kernel that is neither, uint8 [0, 0, 1].
    """
    if kernel.ndim == 2 and kernel.shape[0] == np.prod(image_shape):
        kernel = kernel.reshape(*image_shape, -1)
    if kernel.ndim != 4 or kernel.shape[2] not in (1, 3):
        return np.zeros([0, 0, 1], np.uint8)
    units = np.moveaxis(kernel.astype(np.float64), -1, 0)
    units = np.where(np.isfinite(units), units, 0.0)  # a training may diverge
    largest = np.max(np.abs(units), axis=(1, 2, 3), keepdims=True)
    shade = 127.5 + 127.5 * units / np.maximum(largest, 1e-30)
    columns = int(np.ceil(np.sqrt(len(units))))
    return draw_grid(np.round(shade).astype(np.uint8), columns=columns)
