"""The cut-out on the page, and the brush."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from nova3d.app import masks


def half(width: int = 40, height: int = 20) -> Image.Image:
    """A mask whose left half is object."""
    levels = np.zeros((height, width), np.uint8)
    levels[:, : width // 2] = 255
    return Image.fromarray(levels)


def stroke(size: tuple[int, int], box: tuple[int, int, int, int], colour: str) -> Image.Image:
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(layer).rectangle(box, fill=colour)
    return layer


def test_strokes_add_and_remove_at_the_mask_s_own_size() -> None:
    layers = [stroke((20, 10), (0, 0, 4, 9), masks.REMOVE), stroke((20, 10), (15, 0, 19, 4), masks.ADD)]
    painted = masks.with_strokes(half(), layers)
    assert painted is not None and painted.size == (40, 20) and painted.mode == "L"
    expected = np.array(half())
    expected[:, :10], expected[:10, 30:] = 0, 255
    assert (np.asarray(painted) == expected).mean() > 0.97  # but for the edge of the scaled strokes


def test_the_later_of_two_strokes_counts_and_faint_ones_do_not() -> None:
    box = (30, 5, 35, 15)
    painted = masks.with_strokes(half(), [stroke((40, 20), box, c) for c in (masks.ADD, masks.REMOVE)])
    assert painted is not None and np.array_equal(np.asarray(painted), np.asarray(half()))
    faint = stroke((40, 20), box, masks.ADD + "40")
    assert masks.with_strokes(half(), [faint]) is None and masks.with_strokes(half(), []) is None


def test_the_background_is_faded_and_the_outline_drawn() -> None:
    picture = masks.shrink(torch.full((20, 40, 3), 100, dtype=torch.uint8))
    shown = np.asarray(masks.preview(picture, half(80, 40))).astype(int)
    assert (shown[10, 5] == 100).all() and (shown[10, 35] > 210).all()
    assert shown[10, 20, 0] > 200 > shown[10, 20, 1]


def test_a_large_picture_is_shown_small_on_white() -> None:
    pixels = torch.zeros(900, 1800, 4)
    pixels[:, :900] = 1
    shown = masks.shrink(pixels)
    assert shown.size == (768, 384) and shown.mode == "RGB"
    assert shown.getpixel((700, 200)) == (255, 255, 255)
