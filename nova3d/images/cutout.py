"""The object of a picture, cut out: by its alpha, by a plain background, by a network, or by a mask that is given."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from nova3d.choices import CutoutMethod
from nova3d.errors import InputError
from nova3d.images import u2net
from nova3d.images.colour import premultiply, unpremultiply
from nova3d.images.framing import check_object
from nova3d.images.pixels import MAX_MEGAPIXELS, Picture, decode
from nova3d.utils.files import check_file

log = logging.getLogger(__name__)

PLAIN_BORDER_DEVIATION = 0.04  # a border whose colours deviate less than this from their median is "plain"
MATTE_DISTANCE = 0.06  # colour distance (max over channels) from the background that counts as object
OBJECT_SIDE = 2048  # pixels; a longer object is reduced to at most this. It is more than any later stage uses
WARN_SIDE = 64  # pixels; an object whose longest side is shorter is blurred

_LEAST_TRANSPARENT = 0.005  # share of a picture that is transparent where its alpha means something
_SOLID_ALPHA = 0.7  # an object whose median alpha is lower is semi-transparent
_SPECK, _FAR_SPECK = (
    0.001,
    0.01,
)  # of the object's area: a smaller part outside its bounding box is a speck; if far away
_SECOND_OBJECT = 0.1  # a part of this share of the largest part's area may be another object
_NEARLY_FULL = 0.9
_CLOSER_MARGIN = 0.2  # around what the network found first, as a share of its sides
_MASK_SOFTNESS = 0.5  # of the saliency: it is soft over more than the outline
_CROP_PIXELS = 4_000_000  # a larger picture is cropped to its object
_SEEN = 4  # in a larger picture, what stands apart on one colour and covers none of every fourth pixel is a speck


@dataclass(frozen=True)
class CutOut:
    """A picture whose object is cut out."""

    rgba: Tensor
    """float32 [h,w,4] in [0,1], straight alpha. A picture of more than 4 million pixels is cropped to the surroundings
    of its object, and an object longer than OBJECT_SIDE is reduced."""
    mask: Tensor
    """uint8 [H,W]: the alpha of the whole picture in its own size, upright."""
    method: str
    """What made the mask: "alpha", "plain", "model", "none", or "mask" for one that was given."""
    warnings: list[str] = field(default_factory=list)
    """What may be wrong with the mask, in sentences."""

    def facts(self) -> dict[str, Any]:
        """How the mask was made, its share of the picture and the warnings, for a record."""
        height, width = self.mask.shape
        share = round(float((self.mask > 127).float().mean()), 4)
        return {"method": self.method, "width": width, "height": height, "share": share, "warnings": self.warnings}


def cut_out(
    picture: Picture,
    method: CutoutMethod = "auto",
    mask: Picture | None = None,
    name: str | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    crop: bool = True,
) -> CutOut:
    """Cut the object out of a picture.

    Args:
        picture: a file, a Pillow image, an array or a tensor; see `decode`.
        method: "alpha": the picture's own. "plain": what differs from a background of one colour. "model": what
            U-2-Net finds. "none": the alpha as it is stored, or the whole picture. "auto": the alpha where it separates
            an object, else a plain background, else the model.
        mask: a picture of the same size to take as the mask, instead of `method`: its alpha where it has one that
            separates, else its brightness; white is object.
        name: the picture's name for messages. None: its path.
        max_megapixels: the most millions of pixels that are read.
        crop: whether a large picture is cropped and reduced; see `CutOut.rgba`.

    Returns:
        The picture with its mask. Specks are removed, and a semi-transparent object becomes solid.

    Raises:
        InputError: where the picture or the mask cannot be read, the method does not apply, the mask is of another
            size, or there is (almost) no object.
    """
    if method not in get_args(CutoutMethod):
        raise InputError(f"cutout '{method}' is not one of {', '.join(get_args(CutoutMethod))}")
    name = name or (str(picture) if isinstance(picture, str | Path) else "picture")
    pixels = decode(picture, name, max_megapixels)
    warnings: list[str] = []
    if mask is not None:
        used, alpha = "mask", _read_mask(mask, pixels, max_megapixels)
    else:
        used, alpha = _alpha_by(method, pixels, name, warnings)
    if used != "none":
        alpha = _without_specks(alpha, warnings)
    if used == "plain" and not bool((alpha > 0.5).any()):
        raise InputError(f"there is no object in '{name}': nothing stands out from the background of one colour")
    if used in ("model", "mask") and not bool((alpha > 0.5).any()):
        what = "the network finds none" if used == "model" else "the mask is empty"
        raise InputError(f"there is no object in '{name}': {what}; give a mask, or an RGBA picture")
    check_object(alpha, name)
    warnings += _mask_warnings(alpha)
    for warning in warnings:
        log.warning("'%s': %s", name, warning)
    whole = (alpha * 255).round_().to(torch.uint8)
    return CutOut(_crop_and_downscale(pixels[..., :3], alpha, crop, recolour=used == "model"), whole, used, warnings)


def read_rgba(path: str | Path) -> Tensor:
    """Read a picture of one object that is cut out or stands on a plain background.

    Args:
        path: the file. A turned phone picture is set upright.

    Returns:
        [h,w,4] float32 in [0,1], straight alpha; see `CutOut.rgba`.

    Raises:
        InputError: where the file is missing or not an image, its background is not plain, or there is (almost)
            nothing in the picture.
    """
    pixels = decode(path)
    method: CutoutMethod = "alpha" if pixels.shape[-1] == 4 and alpha_separates(pixels[..., 3]) else "plain"
    return cut_out(pixels, method, name=str(path)).rgba


def alpha_separates(alpha: Tensor) -> bool:
    """Whether an alpha channel tells an object from its surroundings: enough of the picture is transparent.

    One pixel of alpha 254 in an opaque picture does not, and neither does one alpha everywhere.

    Args:
        alpha: [h,w] uint8, or float in [0,1].

    Returns:
        True where at least 0.5 % of the pixels have less than half of the object's alpha.
    """
    floats = _unit(alpha)
    return float((floats < 0.5 * _level(floats)).float().mean()) >= _LEAST_TRANSPARENT or bool((floats == 0).all())


def matte_plain_background(rgb: Tensor, name: str = "image") -> Tensor:
    """Cut an object out of a background of one colour.

    Background is what has the border's median colour and is connected to the border.

    Args:
        rgb: [h,w,3] uint8, or float in [0,1].
        name: the picture's name for the message.

    Returns:
        [h,w] float alpha, 0 or 1.

    Raises:
        InputError: where the border is not of one colour.
    """
    border = _unit(torch.cat([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]))
    colour = border.median(dim=0).values
    other = float(((border - colour).abs().amax(dim=-1) > PLAIN_BORDER_DEVIATION).float().mean())
    if other > 0.05:
        touches = "its object touches the border, or " if other < 0.5 else ""
        raise InputError(
            f"'{name}' has no transparency and {touches}its background is not of one colour: use cutout=model, or cut "
            "the object out (for example `rembg i photo.jpg photo.png`) and pass the RGBA PNG"
        )
    step = _SEEN if rgb.shape[0] * rgb.shape[1] > _CROP_PIXELS else 1
    window = _window_of(~_like(rgb[::step, ::step], colour), step, rgb.shape[:2])
    labels, count = ndimage.label(_like(rgb[window], colour))
    alpha = np.ones(count + 1, np.float32)  # by label; what is not like the background has label 0
    if count:
        edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        alpha[edge[edge > 0]] = 0
    whole = torch.zeros(rgb.shape[:2])
    whole[window] = torch.from_numpy(alpha[labels])
    return whole


def _like(rgb: Tensor, colour: Tensor) -> NDArray[np.bool_]:
    """[h,w]: which pixels of a picture [h,w,3] differ from a colour [3] by at most MATTE_DISTANCE."""
    like = np.ones(rgb.shape[:2], bool)
    for channel, level in enumerate(colour):  # one after the other: a large picture is not copied as floats
        if rgb.dtype == torch.uint8:
            levels = torch.nonzero((torch.arange(256) / 255 - level).abs() <= MATTE_DISTANCE)[:, 0]
            values = rgb[..., channel].numpy()
            like &= (values >= int(levels[0])) & (values <= int(levels[-1]))
        else:
            like &= ((rgb[..., channel] - level).abs() <= MATTE_DISTANCE).numpy()
    return like


def _window_of(found: NDArray[np.bool_], step: int, shape: Sequence[int]) -> tuple[slice, slice]:
    """The rows and columns of a picture of `shape` around what is found in every `step`-th of them."""
    window = []
    for axis, length in enumerate(shape):
        at = np.flatnonzero(found.any(axis=1 - axis))
        first, last = (int(at[0]), int(at[-1])) if len(at) else (0, -2)
        window.append(slice(max(0, (first - 1) * step), min(length, (last + 2) * step)))
    return window[0], window[1]


def _alpha_by(method: CutoutMethod, pixels: Tensor, name: str, warnings: list[str]) -> tuple[str, Tensor]:
    """The method that is used, and [h,w] float alpha by it."""
    own = _unit(pixels[..., 3]) if pixels.shape[-1] == 4 else None
    separates = own is not None and alpha_separates(own)
    if method == "none":
        return "none", torch.ones(pixels.shape[:2]) if own is None else own
    if method == "alpha" and not separates:
        raise InputError(f"'{name}' has no transparency that separates an object: use cutout=plain or cutout=model")
    if method in ("alpha", "auto") and separates and own is not None:
        return "alpha", _coverage(own, warnings)
    if own is not None and method == "auto" and bool((own < 1).any()):
        warnings.append("Its alpha is opaque (almost) everywhere and is ignored.")
    if method == "plain":
        return "plain", matte_plain_background(pixels[..., :3], name)
    if method == "auto":
        try:
            return "plain", matte_plain_background(pixels[..., :3], name)
        except InputError:
            log.info("'%s': the background is not of one colour; U-2-Net cuts the object out", name)
    return "model", _salient_object(pixels[..., :3])


def _unit(levels: Tensor) -> Tensor:
    """uint8 levels as float in [0,1]; floats as they are."""
    return levels.float().div_(255) if levels.dtype == torch.uint8 else levels


def _level(alpha: Tensor) -> float:
    """The median alpha of what is not (almost) transparent; 0 where there is nothing."""
    inside = alpha[alpha > 0.05]
    return float(inside.median()) if len(inside) else 0.0


def _coverage(alpha: Tensor, warnings: list[str]) -> Tensor:
    """An alpha as coverage: that of a semi-transparent object is divided by its interior's level."""
    level = _level(alpha)
    if level >= _SOLID_ALPHA or level == 0:
        return alpha
    warnings.append(f"The object is semi-transparent (alpha about {level:.2f}); it is taken as solid.")
    return (alpha / level).clamp(max=1)


def _read_mask(mask: Picture, pixels: Tensor, max_megapixels: float) -> Tensor:
    """[h,w] float alpha of a mask picture of the same size as `pixels`: white, or opaque, is object."""
    name = "mask"
    if isinstance(mask, str | Path):
        name = str(check_file(mask, "mask"))
    levels = decode(mask, name, max_megapixels)
    if levels.shape[:2] != pixels.shape[:2]:
        (height, width), (own_height, own_width) = levels.shape[:2], pixels.shape[:2]
        raise InputError(f"mask '{name}' has {width}x{height} pixels, its picture {own_width}x{own_height}")
    if levels.shape[-1] == 4 and alpha_separates(levels[..., 3]):
        return _unit(levels[..., 3])
    if levels.dtype == torch.uint8 and int(levels[..., :3].max()) == 1:  # labels of 0 and 1
        return levels[..., 0].float()
    return _unit(levels[..., :3]).mean(dim=-1)


def _without_specks(alpha: Tensor, warnings: list[str]) -> Tensor:
    """The alpha without parts that are too small to be meant; says so, and whether there may be several objects."""
    step = math.ceil(max(alpha.shape) / 2000)  # parts of a large picture are found at less than its resolution
    padded = F.pad((alpha > 0.5).float(), (0, -alpha.shape[1] % step, 0, -alpha.shape[0] % step))
    area = F.avg_pool2d(padded[None], step)[0].numpy()
    labels, count = ndimage.label(area > 0, structure=np.ones((3, 3)))
    if count < 2:
        return alpha
    areas = np.bincount(labels.ravel(), weights=area.ravel())[1:]
    boxes = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in ndimage.find_objects(labels)]
    top, bottom, left, right = boxes[int(areas.argmax())]
    gaps = np.array([max(b[0] - bottom, top - b[1], b[2] - right, left - b[3]) for b in boxes])
    far = gaps > 0.1 * max(bottom - top, right - left)
    specks = (gaps > 0) & (areas < np.where(far, _FAR_SPECK, _SPECK) * areas.max())  # within the box they do no harm
    others = int((areas[~specks] >= _SECOND_OBJECT * areas.max()).sum())
    if others > 1:
        warnings.append(f"The picture may show {others} objects; what is apart stays apart in the mesh.")
    if not specks.any():
        return alpha
    warnings.append(f"{int(specks.sum())} speck(s) outside the object were removed from the mask.")
    rim = np.ones((5, 5), bool)
    speck = ndimage.binary_dilation(np.isin(labels, np.flatnonzero(specks) + 1), rim)
    kept = ndimage.binary_dilation(np.isin(labels, np.flatnonzero(~specks) + 1), rim)
    removed = torch.from_numpy((speck & ~kept).repeat(step, 0).repeat(step, 1)[: alpha.shape[0], : alpha.shape[1]])
    return torch.where(removed, 0.0, alpha)


def _mask_warnings(alpha: Tensor) -> list[str]:
    """Sentences on a mask that touches the border, fills the picture, or is small."""
    inside = alpha > 0.5
    borders = {"upper": inside[0], "lower": inside[-1], "left": inside[:, 0], "right": inside[:, -1]}
    touched = [side for side, row in borders.items() if int(row.sum()) > max(1, 0.02 * len(row))]
    doubts = []
    if touched:
        doubts.append(f"The object touches the {' and the '.join(touched)} border: what lies beyond is unknown.")
    if (share := float(inside.float().mean())) > _NEARLY_FULL:
        doubts.append(f"The mask fills {100 * share:.0f} % of the picture: the background may be part of the object.")
    rows, columns = torch.nonzero(inside.any(dim=1)), torch.nonzero(inside.any(dim=0))
    side = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1
    if side < WARN_SIDE:
        doubts.append(f"The object is only {side} pixels long; {WARN_SIDE} or more are wanted.")
    return doubts


def _crop_and_downscale(rgb: Tensor, alpha: Tensor, crop: bool, recolour: bool) -> Tensor:
    """float32 [h,w,4] of colours (uint8 or float) and alpha: cropped and reduced where it is large, as CutOut says."""
    height, width = alpha.shape
    top, bottom, left, right, step = 0, height, 0, width, 1
    if crop and height * width > _CROP_PIXELS:
        rows, columns = (torch.nonzero((alpha > 0.5).any(dim=d))[:, 0] for d in (1, 0))
        longest = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
        margin = math.ceil(longest / 3)
        top, bottom = max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + 1 + margin)
        left, right = max(0, int(columns[0]) - margin), min(width, int(columns[-1]) + 1 + margin)
        step = math.ceil(longest / OBJECT_SIDE)
    bands = []
    for start in range(top, bottom, 256 * step):  # one after the other, so that a large picture is not copied as floats
        band = slice(start, min(bottom, start + 256 * step)), slice(left, right)
        bands.append(_block_means(torch.cat([_unit(rgb[band]), alpha[band][..., None]], dim=-1), step))
    rgba = torch.cat(bands)
    return _replace_rim_colours(rgba) if recolour else rgba


def _block_means(rgba: Tensor, step: int) -> Tensor:
    """[h,w,4] straight alpha reduced by a whole number: means of premultiplied colours over `step` x `step` pixels.

    The filter of `images.resize` reaches into neighbouring blocks. Bands that are resized one by one would show seams.
    """
    if step == 1:
        return rgba
    padded = premultiply(rgba)
    if rgba.shape[0] % step or rgba.shape[1] % step:
        padded = F.pad(padded, (0, 0, 0, -rgba.shape[1] % step, 0, -rgba.shape[0] % step))
    total = sum(padded[row::step, column::step] for row in range(step) for column in range(step))
    return unpremultiply(torch.as_tensor(total) / step**2)


def _salient_object(rgb: Tensor) -> Tensor:
    """[h,w] float alpha of the salient object of a picture [h,w,3]: the mean of two looks.

    The second look is at the surroundings of what the first one found, where the network sees finer detail.
    """
    height, width = rgb.shape[:2]
    alpha = _resize_saliency(u2net.saliency(rgb), height, width)
    inside = alpha > 0.5
    if not bool(inside.any()):
        return torch.zeros_like(alpha)
    crop = []
    for found, length in ((inside.any(dim=1), height), (inside.any(dim=0), width)):
        covered = torch.nonzero(found)[:, 0]
        margin = round(_CLOSER_MARGIN * int(covered[-1] - covered[0] + 1))
        crop.append(slice(max(0, int(covered[0]) - margin), min(length, int(covered[-1]) + 1 + margin)))
    closer = rgb[crop[0], crop[1]]
    mean = alpha / 2
    mean[crop[0], crop[1]] += _resize_saliency(u2net.saliency(closer), *closer.shape[:2]) / 2
    return ((mean - 0.5) / _MASK_SOFTNESS + 0.5).clamp(0, 1)


def _resize_saliency(saliency: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(saliency[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]


def _replace_rim_colours(rgba: Tensor) -> Tensor:
    """Straight colours without the background's share in the soft rim: those of the object's inside nearby."""
    height, width = rgba.shape[:2]
    inside = (rgba[..., 3:] >= 0.95).float()
    known = torch.cat([rgba[..., :3] * inside, inside], dim=-1).permute(2, 0, 1)[None]
    reach = max(1, round(max(height, width) / u2net.INPUT_SIDE))  # pixels of the picture in one of the network
    coarse = F.avg_pool2d(known, reach, ceil_mode=True)
    coarse = F.avg_pool2d(coarse, 5, stride=1, padding=2)
    near = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    colour = torch.where(near[..., 3:] > 0, near[..., :3] / near[..., 3:].clamp_min(1e-6), rgba[..., :3])
    return torch.cat([torch.where(inside > 0, rgba[..., :3], colour), rgba[..., 3:]], dim=-1)
