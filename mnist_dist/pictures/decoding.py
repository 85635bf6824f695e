"""An encoded picture, of any kind and size, as pixels in bounded memory."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT

from mnist_dist.errors import InputError

MAX_PIXELS = 1 << 26  # of one picture: decoded, a quarter of a gigabyte
MAX_ENCODED_BYTES = 1 << 28  # of one picture

# Pillow reads more; what nobody keeps digits in is only a way to be attacked.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
# A photograph is scaled down to not less than this, which leaves enough of a digit
# that fills a tenth of it.
_ENOUGH_PIXELS = 1024

# Here, once: Pillow would do it on the first odd file, in several threads.
Image.init()


def decode_picture(data: bytes, *, name: str, scale_down: bool = True) -> np.ndarray:
    """Decodes a picture to uint8 [h, w] or [h, w, 3].

    Args:
      data: an encoded picture; its content says in which format.
      name: names the file in error messages.
      scale_down: whether one of 2048 pixels or more on its shorter side comes at a
        half of its size or less, which saves time.

    Raises:
      InputError: it is no picture, is damaged, or has too many bytes or pixels.
    """
    if len(data) > MAX_ENCODED_BYTES:
        raise InputError(
            f"{name}: found more than {MAX_ENCODED_BYTES} bytes, expected fewer"
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise too_large(image.width, image.height, name=name)
            # Decodes a JPEG at a half, a quarter or an eighth: less work.
            if scale_down:
                image.draft(None, (_ENOUGH_PIXELS, _ENOUGH_PIXELS))
            image.load()
            if image.format == "PNG":
                # Pillow decodes what fits, whatever the checksums say.
                with Image.open(io.BytesIO(data), formats=["PNG"]) as unread:
                    unread.verify()
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_simplify(image, name=name, scale_down=scale_down))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name}: found 0x{data[:4].hex()} at its start, expected a picture "
            f"({', '.join(FORMATS)}), .npy or IDX"
        ) from error
    # Decoders raise nearly anything on damaged data.
    except Exception as error:
        raise InputError(f"{name}: a picture that cannot be read ({error})") from error


def _simplify(image: Image.Image, *, name: str, scale_down: bool) -> Image.Image:
    """Returns the picture grey or in colour, 8 bits a channel, opaque."""
    if image.mode == "F":
        raise InputError(f"{name}: found pixels of floats, expected integers")
    if image.mode.startswith("I"):  # 16 bits: divided by 257 and rounded
        _check_depth(image, name=name)
        levels = (np.clip(np.asarray(image), 0, 65407) + 128) // 257
        image = Image.fromarray(levels.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    else:
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    factor = min(image.width, image.height) // _ENOUGH_PIXELS
    if scale_down and factor > 1:
        image = image.reduce(factor)
    return _lay_on_paper(image) if image.mode == "RGBA" else image


def _check_depth(image: Image.Image, *, name: str) -> None:
    """Refuses integers of which a file does not say what is white, as a TIFF's 32 bits.

    PNG's are of 16 bits, and those of PNM are scaled to them by the maximum they name.
    """
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        (bits, *_), (kind, *_) = tags.get(BITSPERSAMPLE), tags.get(SAMPLEFORMAT, (1,))
        if (bits, kind) != (16, 1):
            sign = "unsigned" if kind == 1 else "signed"
            raise InputError(
                f"{name}: found pixels of {bits} bits, {sign}, expected 8 or 16 bits, "
                "unsigned"
            )


def _lay_on_paper(image: Image.Image) -> Image.Image:
    """Makes an RGBA picture opaque: on white if what is seen of it is dark, or black."""
    weights = np.asarray(image.getchannel("A"), np.float32)
    if weights.min() < 255:
        luma = np.asarray(image.convert("L"))
        is_light = weights.any() and np.average(luma, weights=weights) > 127
        paper = Image.new("RGBA", image.size, "black" if is_light else "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def too_large(width: int, height: int, *, name: str) -> InputError:
    """Returns the error of a picture that would not fit into memory."""
    return InputError(
        f"{name}: found {width}x{height} pixels, expected at most {MAX_PIXELS}"
    )
