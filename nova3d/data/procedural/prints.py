"""Pictures printed on procedural objects: patterns, and labels with words, emblems and small print."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

_CONSONANTS, _VOWELS = "BDFGKLMNPRSTVZ", "AEIOU"
_UNITS = ("ml", "g", "oz", "pcs", "cm", "%")
_DRAWN = 3  # a label is drawn this much larger than it is printed, which smooths its edges


@dataclass(frozen=True)
class Palette:
    """The colours of one object, sRGB in 0 to 255."""

    base: Colour
    second: Colour
    accent: Colour
    paper: Colour
    ink: Colour

    @property
    def colours(self) -> tuple[Colour, ...]:
        """All of them."""
        return self.base, self.second, self.accent, self.paper, self.ink


def make_palette(rng: Generator) -> Palette:
    """Draw a palette: a base that is saturated, pale, dark, wooden or grey, and colours that go with it."""
    hue = float(rng.random())
    kind = rng.choice(["saturated", "pale", "dark", "wood", "grey"], p=[0.4, 0.2, 0.15, 0.12, 0.13])
    base = {
        "saturated": (hue, rng.uniform(0.55, 0.95), rng.uniform(0.5, 0.95)),
        "pale": (hue, rng.uniform(0.05, 0.3), rng.uniform(0.8, 0.98)),
        "dark": (hue, rng.uniform(0.2, 0.8), rng.uniform(0.12, 0.35)),
        "wood": (rng.uniform(0.05, 0.11), rng.uniform(0.35, 0.7), rng.uniform(0.35, 0.8)),
        "grey": (hue, rng.uniform(0, 0.08), rng.uniform(0.2, 0.9)),
    }[str(kind)]
    other = (hue + float(rng.choice([0.5, 0.33, 0.08, -0.08, 0.0]))) % 1
    second = other, rng.uniform(0.2, 0.9), rng.uniform(0.3, 0.95)
    accent = (hue + rng.uniform(0.3, 0.7)) % 1, rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0)
    paper = hue, rng.uniform(0, 0.15), rng.uniform(0.88, 1.0)
    ink = hue, rng.uniform(0, 0.9), rng.uniform(0.03, 0.35)
    return Palette(*(_rgb(*hsv) for hsv in (base, second, accent, paper, ink)))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def pattern(rng: Generator, width: int, height: int, palette: Palette) -> Image.Image:
    """Draw a material or a repeated pattern in the palette's colours.

    Args:
        rng: decides which.
        width: in pixels.
        height: in pixels.
        palette: the colours.

    Returns:
        A picture, RGB.
    """
    names = ["plain", "gradient", "stripes", "checks", "dots", "noise", "grain"]
    kind = str(rng.choice(names, p=[0.28, 0.12, 0.15, 0.08, 0.09, 0.16, 0.12]))
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    near = np.array(palette.base)
    far = np.array(palette.second if rng.random() < 0.6 else palette.paper)
    if kind in ("noise", "grain"):
        far = 0.55 * near + 0.45 * far
    count = int(rng.integers(3, 9))
    if kind == "plain":
        share = np.zeros((height, width))
    elif kind == "gradient":
        share = y * max(width, height) / height if rng.random() < 0.7 else x
    elif kind == "stripes":
        along = [x, y, (x + y) / 2][int(rng.integers(3))]
        share = ((along * count) % 1 < rng.uniform(0.15, 0.6)) * 1.0
    elif kind == "checks":
        share = (np.floor(x * count * 2) + np.floor(y * count * 2)) % 2
    elif kind == "dots":
        shifted = x * count + 0.5 * (np.floor(y * count) % 2)
        share = (np.hypot(shifted % 1 - 0.5, (y * count) % 1 - 0.5) < rng.uniform(0.15, 0.38)) * 1.0
    else:
        stretch = (1, 1) if kind == "noise" else (1, 12) if rng.random() < 0.5 else (12, 1)
        share = noise(rng, width, height, stretch)
    share = (share + 0.05 * (noise(rng, width, height) - 0.5))[..., None]
    mixed = near * (1 - share) + far * share
    return Image.fromarray(np.clip(np.round(mixed), 0, 255).astype(np.uint8), "RGB")


def noise(rng: Generator, width: int, height: int, stretch: tuple[int, int] = (1, 1)) -> NDArray[np.float64]:
    """Draw smooth noise of three octaves.

    Args:
        rng: its source.
        width: in pixels.
        height: in pixels.
        stretch: how many times finer it is along x and y.

    Returns:
        [height,width] float64 in [0,1].
    """
    total = np.zeros((height, width))
    for octave in range(3):
        shape = (4 * 2**octave * stretch[1], 4 * 2**octave * stretch[0])
        grid = Image.fromarray(rng.random(shape).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float64) / 2**octave
    total -= total.min()
    return total / max(total.max(), 1e-9)


def word(rng: Generator) -> str:
    """Make up a word of two or three syllables."""
    syllables = [str(rng.choice(list(_CONSONANTS))) + str(rng.choice(list(_VOWELS))) for _ in range(rng.integers(1, 4))]
    text = "".join(syllables) + str(rng.choice(["", "N", "X", "S", "L"]))
    return text if rng.random() < 0.7 else text.capitalize()


def front_label(rng: Generator, width: int, height: int, palette: Palette) -> Image.Image:
    """Draw the label on an object's front: a word, mostly with an emblem, a second line and a band or a frame.

    Args:
        rng: decides the layout.
        width: in pixels.
        height: in pixels.
        palette: the colours.

    Returns:
        A picture, RGBA; transparent beside the label.
    """
    size = width * _DRAWN, height * _DRAWN
    image = Image.new("RGBA", size)
    draw = ImageDraw.Draw(image)
    plate = palette.paper if rng.random() < 0.6 else palette.accent
    ink = palette.ink if sum(plate) > 300 else palette.paper
    box = (1, 1, size[0] - 2, size[1] - 2)
    shape = rng.choice(["rounded", "plain", "ellipse", "none"], p=[0.35, 0.3, 0.15, 0.2])
    if shape == "rounded":
        draw.rounded_rectangle(box, min(size) // 6, fill=plate)
    elif shape == "plain":
        draw.rectangle(box, fill=plate)
    elif shape == "ellipse":
        draw.ellipse(box, fill=plate)
    else:
        ink = palette.ink if sum(palette.base) > 330 else palette.paper
    margin = 0.2 if shape == "ellipse" else 0.08
    left, right = size[0] * margin, size[0] * (1 - margin)
    top, bottom = size[1] * margin, size[1] * (1 - margin)
    tall = bottom - top
    if shape != "none" and rng.random() < 0.3:
        band = palette.second if palette.second != plate else palette.base
        draw.rectangle((left, bottom - tall * 0.16, right, bottom), fill=band)
        bottom -= tall * 0.2
    emblem_share = float(rng.uniform(0.35, 0.65)) if rng.random() < 0.75 else 0.0
    if rng.random() < 0.5:
        rows = [("emblem", emblem_share), ("word", 0.3), ("line", 0.12)]
    else:
        rows = [("word", 0.35), ("emblem", emblem_share), ("line", 0.12)]
    total = sum(share for _, share in rows)
    for what, share in rows:
        end = top + (bottom - top) * share / total
        total -= share
        area = (left, top, right, end)
        if what == "emblem" and share:
            _emblem(draw, rng, area, palette)
        elif what == "word":
            _fit_text(draw, area, word(rng), ink)
        elif what == "line":
            _fit_text(draw, area, f"{rng.integers(1, 100) * 5} {rng.choice(list(_UNITS))}", ink)
        top = end
    return image.resize((width, height), Image.Resampling.BOX)


def back_label(rng: Generator, width: int, height: int, palette: Palette) -> Image.Image:
    """Draw the label on an object's back: lines of small print and a bar code.

    Args:
        rng: decides the lines.
        width: in pixels.
        height: in pixels.
        palette: the colours.

    Returns:
        A picture, RGBA.
    """
    size = width * _DRAWN, height * _DRAWN
    image = Image.new("RGBA", size, (*palette.paper, 255))
    draw = ImageDraw.Draw(image)
    rows = int(rng.integers(5, 10))
    step = size[1] * 0.6 / rows
    for row in range(rows):
        y = size[1] * 0.08 + row * step
        end = size[0] * float(rng.uniform(0.5, 0.92))
        draw.rectangle((size[0] * 0.08, y, end, y + step * 0.4), fill=palette.ink)
    x, top = size[0] * 0.1, size[1] * 0.74
    while x < size[0] * 0.6:
        bar = size[0] * float(rng.uniform(0.01, 0.03))
        draw.rectangle((x, top, x + bar, size[1] * 0.92), fill=(20, 20, 20))
        x += bar + size[0] * float(rng.uniform(0.01, 0.03))
    return image.resize((width, height), Image.Resampling.BOX)


Box = tuple[float, float, float, float]


def _fit_text(draw: ImageDraw.ImageDraw, area: Box, text: str, ink: Colour) -> None:
    """Draw a line of text as large as fits, in the middle of an area."""
    left, top, right, bottom = area
    probe = ImageFont.load_default(64)
    box = draw.textbbox((0, 0), text, font=probe)
    scale = min((right - left) / (box[2] - box[0]), 0.85 * (bottom - top) / (box[3] - box[1]))
    font = ImageFont.load_default(max(4.0, 64 * scale))
    draw.text(((left + right) / 2, (top + bottom) / 2), text, fill=ink, font=font, anchor="mm")


def _emblem(draw: ImageDraw.ImageDraw, rng: Generator, area: Box, palette: Palette) -> None:
    left, top, right, bottom = area
    centre = (left + right) / 2, (top + bottom) / 2
    radius = 0.45 * min(right - left, bottom - top)
    colours = [palette.accent, palette.second, palette.base, palette.ink]
    first, other = (colours[k] for k in rng.permutation(4)[:2])
    kinds: list[Callable[..., None]] = [_star, _rings, _flower, _landscape, _face, _blocks]
    kinds[int(rng.integers(len(kinds)))](draw, rng, centre, radius, first, other)


Point = tuple[float, float]


def _disc(draw: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _star(
    draw: ImageDraw.ImageDraw, rng: Generator, centre: Point, radius: float, first: Colour, other: Colour
) -> None:
    points, inner = int(rng.integers(4, 13)), float(rng.uniform(0.35, 0.8))
    angle = np.pi * np.arange(2 * points) / points - np.pi / 2
    reach = radius * np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    outline = zip(centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle), strict=True)
    draw.polygon([(float(x), float(y)) for x, y in outline], fill=first)
    _disc(draw, centre, 0.3 * radius, other)


def _rings(
    draw: ImageDraw.ImageDraw, rng: Generator, centre: Point, radius: float, first: Colour, other: Colour
) -> None:
    for ring in range(int(rng.integers(2, 5)), 0, -1):
        _disc(draw, centre, radius * ring / 4, first if ring % 2 else other)


def _flower(
    draw: ImageDraw.ImageDraw, rng: Generator, centre: Point, radius: float, first: Colour, other: Colour
) -> None:
    petals = int(rng.integers(4, 9))
    for angle in 2 * np.pi * np.arange(petals) / petals:
        place = centre[0] + 0.6 * radius * float(np.cos(angle)), centre[1] + 0.6 * radius * float(np.sin(angle))
        _disc(draw, place, 0.38 * radius, first)
    _disc(draw, centre, 0.35 * radius, other)


def _landscape(
    draw: ImageDraw.ImageDraw, rng: Generator, centre: Point, radius: float, first: Colour, other: Colour
) -> None:
    x, y = centre
    draw.rectangle((x - 1.2 * radius, y - radius, x + 1.2 * radius, y + radius), fill=(150, 200, 235))
    _disc(draw, (x + float(rng.uniform(-0.6, 0.6)) * radius, y - 0.4 * radius), 0.3 * radius, (250, 210, 80))
    for colour, low in ((first, 0.1), (other, 0.5)):
        peak = x + float(rng.uniform(-0.8, 0.8)) * radius, y - float(rng.uniform(0, 0.6)) * radius + low * radius
        draw.polygon([(x - 1.2 * radius, y + radius), peak, (x + 1.2 * radius, y + radius)], fill=colour)


def _face(
    draw: ImageDraw.ImageDraw, rng: Generator, centre: Point, radius: float, first: Colour, other: Colour
) -> None:
    x, y = centre
    _disc(draw, centre, radius, first)
    for side in (-1, 1):
        _disc(draw, (x + side * 0.38 * radius, y - 0.2 * radius), 0.22 * radius, (255, 255, 255))
        _disc(draw, (x + side * 0.34 * radius, y - 0.2 * radius), 0.11 * radius, (15, 15, 15))
    width = 0.2 + 0.5 * float(rng.random())
    draw.pieslice((x - width * radius, y, x + width * radius, y + 0.7 * radius), 0, 180, fill=other)


def _blocks(
    draw: ImageDraw.ImageDraw, rng: Generator, centre: Point, radius: float, first: Colour, other: Colour
) -> None:
    count = int(rng.integers(3, 6))
    filled = rng.random((count, (count + 1) // 2)) < 0.6
    cells = np.concatenate([filled, filled[:, ::-1][:, count % 2 :]], axis=1)
    step = 2 * radius / count
    for row, column in np.argwhere(cells):
        corner = centre[0] - radius + column * step, centre[1] - radius + row * step
        draw.rectangle((*corner, corner[0] + step - 1, corner[1] + step - 1), fill=first if row % 2 else other)
