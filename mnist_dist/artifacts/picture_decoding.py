"""Encoded pictures -> pixels, in a TensorFlow graph, as `predict` sees them."""

import tensorflow as tf

_PNG = b"\x89PNG\r\n\x1a\n"
# The entry of EXIF that says that a picture is turned or mirrored, big- and
# little-endian: tag 0x0112, type short, one value, 2 to 8.
_TURNED = (
    r"\C*(\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08]"
    r"|\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]\x00)\C*"
)
_EXIF_BYTES = 1 << 16  # EXIF comes first, and is not longer
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow and libpng have them


def decode_picture(encoded: tf.Tensor, *, channels: int) -> tf.Tensor:
    """Returns the pixels of a PNG, JPEG, GIF (its first frame) or BMP file.

    What is transparent is laid on white if what is seen is dark, or else on black. A
    JPEG that is to be turned when it is shown, or is in CMYK, is an
    `InvalidArgumentError`: no operation of TensorFlow's shows it as others see it.

    Args:
      encoded: a scalar string.
      channels: 1 or 3.

    Returns:
      uint8 or float32 [height, width, channels], 0 to 255.
    """
    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG
    return tf.cond(
        is_png,
        lambda: _decode_png(encoded, channels),
        lambda: _decode_other(encoded, channels),
    )


def _decode_png(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    picture = tf.cast(tf.io.decode_png(encoded, channels=4), tf.float32)
    opaque = tf.cast(tf.io.decode_png(encoded, channels=channels), tf.float32)
    colours, alpha = picture[..., :3], picture[..., 3:] / 255.0
    luma = tf.reduce_sum(colours * _LUMA, axis=-1, keepdims=True)
    seen = tf.math.divide_no_nan(tf.reduce_sum(luma * alpha), tf.reduce_sum(alpha))
    has_light = seen > 127.0
    paper = tf.where(has_light, 0.0, 255.0)
    if channels == 1:
        colours = luma
    laid = tf.round(colours * alpha + paper * (1.0 - alpha))
    return tf.where(tf.reduce_all(alpha == 1.0), opaque, laid)


def _decode_other(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    is_turned = tf.strings.regex_full_match(
        tf.strings.substr(encoded, 0, _EXIF_BYTES), _TURNED
    )
    check = tf.debugging.Assert(
        tf.logical_not(is_turned),
        ["found a picture that EXIF says to turn, expected one that is upright"],
    )
    with tf.control_dependencies([check]):
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    image.set_shape([None, None, channels])
    return tf.cast(image, tf.float32)
