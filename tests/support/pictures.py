"""Pictures of digits as people make them, each from one of MNIST's, by kind.

Each function takes a digit, uint8 [28, 28], light on black, and a generator of random
numbers, and returns a picture, uint8 [h, w] or [h, w, 3 or 4].
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

PAPER, INK = 235, 40


def ink_on(
    digit: np.ndarray, *, canvas: int = 300, side: int = 150, at: tuple | None = None
) -> np.ndarray:
    """How much ink each pixel has, float [canvas, canvas], 0 to 1."""
    top, left = at or ((canvas - side) // 2,) * 2
    scaled = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    ink = np.zeros((canvas, canvas))
    ink[top : top + side, left : left + side] = np.asarray(scaled) / 255.0
    return ink


def draw(ink: np.ndarray, paper: np.ndarray | float = PAPER, pen: float = INK):
    """Ink on paper: uint8."""
    return np.clip(np.rint(paper + ink * (pen - paper)), 0, 255).astype(np.uint8)


def own_28(digit, rng):
    """A drawing of the model's size, dark on light."""
    return 255 - digit


def own_28_grey_paper(digit, rng):
    return draw(digit / 255.0, paper=200, pen=60)


def own_28_transparent(digit, rng):
    """Black ink on transparency, as drawing programs save it."""
    return np.dstack([np.zeros((28, 28, 3), np.uint8), digit])


def off_centre_28(digit, rng):
    """Light on black, but shifted by up to four pixels, as far as it fits."""
    rows, columns = np.nonzero(digit)
    shifts = []
    for first, last in ((rows.min(), rows.max()), (columns.min(), columns.max())):
        wanted = int(rng.choice([-4, 4]))
        shifts.append(int(np.clip(wanted, -first, 27 - last)))
    return np.roll(digit, shifts, axis=(0, 1))


def dark_on_light(digit, rng):
    top, left = rng.integers(0, 150, 2)
    return draw(ink_on(digit, at=(top, left)))


def light_on_dark(digit, rng):
    return 255 - dark_on_light(digit, rng)


def speck(digit, rng):
    """A mark of six pixels far from the digit."""
    picture = dark_on_light(digit, rng)
    at = rng.integers(0, 2, 2) * 270 + rng.integers(5, 20, 2)
    picture[at[0] : at[0] + 2, at[1] : at[1] + 3] = INK
    return picture


def with_strip(picture, rng, shade):
    side = int(rng.integers(4))
    turned = np.rot90(picture, side).copy()
    turned[:, : rng.integers(10, 40)] = shade
    return np.rot90(turned, -side)


def strip(digit, rng):
    """A strip of the table at an edge of the sheet."""
    return with_strip(draw(ink_on(digit, at=(75, 75))), rng, rng.integers(20, 110))


def light_strip(digit, rng):
    """A strip of a white table beside grey paper."""
    return with_strip(draw(ink_on(digit, at=(75, 75)), paper=150), rng, 255)


def frame(digit, rng):
    """A thin frame around the digit, not at the edge."""
    picture = draw(ink_on(digit))
    inset, thick = int(rng.integers(8, 40)), int(rng.integers(1, 5))
    ring = np.zeros((300, 300), bool)
    ring[inset : 300 - inset, inset : 300 - inset] = True
    inner = inset + thick
    ring[inner : 300 - inner, inner : 300 - inner] = False
    picture[ring] = INK
    return picture


def edge_frame(digit, rng):
    """A frame that is the edge itself."""
    picture = draw(ink_on(digit))
    thick = int(rng.integers(1, 6))
    picture[:thick], picture[-thick:] = 0, 0
    picture[:, :thick], picture[:, -thick:] = 0, 0
    return picture


def ruled(digit, rng):
    """Dark lines across the sheet, through the digit."""
    ink = ink_on(digit)
    thick = int(rng.integers(1, 4))
    for top in range(int(rng.integers(5, 40)), 300, int(rng.integers(40, 60))):
        ink[top : top + thick] = np.maximum(ink[top : top + thick], 0.8)
    return draw(ink)


def squared(digit, rng):
    """Thin squares, lighter than the ink."""
    ink = ink_on(digit)
    for start in range(int(rng.integers(5, 20)), 300, 25):
        ink[start] = np.maximum(ink[start], 0.4)
        ink[:, start] = np.maximum(ink[:, start], 0.4)
    return draw(ink)


def shaded(digit, rng):
    """Light from one side: the paper is from 245 to 130."""
    paper = np.linspace(245, 130, 300) * np.ones((300, 1))
    ink = ink_on(digit, at=tuple(rng.integers(0, 150, 2)))
    return draw(ink, paper=np.rot90(paper, rng.integers(4)))


def vignetted(digit, rng):
    """Darker towards the corners, as a lens makes it."""
    y, x = np.mgrid[-1:1:300j, -1:1:300j]
    return draw(ink_on(digit), paper=240 - 55 * (x**2 + y**2))


def noisy(digit, rng):
    """Grain, and single pixels that are black or white."""
    picture = dark_on_light(digit, rng) + rng.normal(0, 12, (300, 300))
    picture = picture.clip(0, 255).astype(np.uint8)
    dots = rng.integers(0, 300, (2, 150))
    picture[dots[0], dots[1]] = rng.choice([0, 255], 150)
    return picture


def photographed(digit, rng):
    """Blue-grey ink on yellowish paper under uneven light, with grain and blur."""
    ink = ink_on(
        digit, side=int(rng.integers(90, 180)), at=tuple(rng.integers(5, 110, 2))
    )
    paper, pen = np.array([230.0, 220, 180]), np.array([70.0, 80, 120])
    light = np.linspace(1, rng.uniform(0.7, 1), 300)[:, np.newaxis, np.newaxis]
    colour = (paper + ink[..., np.newaxis] * (pen - paper)) * light
    colour = colour + rng.normal(0, 6, (300, 300, 1))
    small = Image.fromarray(colour.clip(0, 255).astype(np.uint8))
    return np.asarray(small.resize((200, 200)).resize((300, 300)))


def small_in_large(digit, rng):
    """A digit that fills a tenth of a large picture."""
    at = tuple(rng.integers(20, 1000, 2))
    return draw(ink_on(digit, canvas=1200, side=150, at=at))


def touching_edge(digit, rng):
    """Cut off so closely that the digit touches an edge of the picture."""
    rows, columns = np.nonzero(digit > 100)
    picture = 255 - digit[rows.min() :, max(columns.min() - 3, 0) :]
    return np.asarray(Image.fromarray(picture).resize((200, 220)))


def broken(digit, rng):
    """A pen that left gaps: a white line of two pixels through the strokes."""
    ink = ink_on(digit, at=(75, 75))
    cut = int(rng.integers(140, 160))
    ink[cut : cut + 4] = 0
    return draw(ink)


ONE_DIGIT = (
    own_28,
    own_28_grey_paper,
    own_28_transparent,
    off_centre_28,
    dark_on_light,
    light_on_dark,
    speck,
    strip,
    light_strip,
    frame,
    edge_frame,
    ruled,
    squared,
    shaded,
    vignetted,
    noisy,
    photographed,
    small_in_large,
    touching_edge,
    broken,
)


def two_digits(first, second, rng):
    """Two digits side by side, the first the larger."""
    ink = ink_on(first, side=130, at=(80, 10))
    ink = np.maximum(
        ink, ink_on(second, side=110, at=(90, int(rng.integers(160, 185))))
    )
    return draw(ink)


def ruled_askew(digit, rng):
    """As `ruled`, on a sheet that lies turned by up to two degrees."""
    picture = Image.fromarray(ruled(digit, rng)).convert("L")
    angle = rng.uniform(-2, 2)
    return np.asarray(picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=PAPER))


def sheet_on_table(digit, rng):
    """A turned sheet on a dark table, with the digit in its middle."""
    sheet = Image.fromarray(draw(ink_on(digit)))
    turned = sheet.convert("RGBA").rotate(
        float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC, expand=True
    )
    table = Image.new("RGBA", (420, 420), (60, 45, 30))
    table.alpha_composite(turned, (40, 40))
    return np.asarray(table.convert("RGB"))


# Strokes of each digit from 0 to 1, x and y, as a thin brush draws them.
_STROKES = {
    0: [[(0.5, 0), (0.1, 0.3), (0.1, 0.7), (0.5, 1), (0.9, 0.7), (0.9, 0.3), (0.5, 0)]],
    1: [[(0.3, 0.2), (0.5, 0), (0.5, 1)]],
    2: [[(0.1, 0.2), (0.5, 0), (0.9, 0.2), (0.8, 0.5), (0.1, 1), (1, 1)]],
    3: [
        [
            (0.1, 0.1),
            (0.6, 0),
            (0.9, 0.25),
            (0.4, 0.45),
            (0.9, 0.7),
            (0.6, 1),
            (0.1, 0.9),
        ]
    ],
    4: [[(0.7, 1), (0.7, 0), (0, 0.65), (1, 0.65)]],
    5: [
        [(0.95, 0), (0.2, 0), (0.15, 0.4), (0.7, 0.4), (0.9, 0.7), (0.6, 1), (0.1, 0.9)]
    ],
    6: [
        [
            (0.7, 0),
            (0.2, 0.4),
            (0.15, 0.8),
            (0.5, 1),
            (0.85, 0.8),
            (0.6, 0.55),
            (0.2, 0.7),
        ]
    ],
    7: [[(0, 0), (1, 0), (0.4, 1)]],
    8: [
        [
            (0.5, 0.45),
            (0.15, 0.2),
            (0.5, 0),
            (0.85, 0.2),
            (0.15, 0.75),
            (0.5, 1),
            (0.85, 0.75),
            (0.5, 0.45),
        ]
    ],
    9: [[(0.85, 0.2), (0.4, 0), (0.15, 0.25), (0.5, 0.45), (0.85, 0.2), (0.7, 1)]],
}


def thin_pen(label: int, *, width: int = 3, margin: int = 40, canvas: int = 300):
    """A digit in thin strokes that fill most of the picture: uint8 [h, w]."""
    picture = Image.new("L", (canvas, canvas), 255)
    side = canvas - 2 * margin
    pen = ImageDraw.Draw(picture)
    for stroke in _STROKES[label]:
        points = [(margin + side * x * 0.8, margin + side * y) for x, y in stroke]
        pen.line(points, fill=0, width=width, joint="curve")
    return np.asarray(picture)


def trimmed(picture: np.ndarray) -> np.ndarray:
    """Cut off to what is not paper, as programs for drawing do it."""
    rows, columns = np.nonzero(picture < 128)
    return picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
