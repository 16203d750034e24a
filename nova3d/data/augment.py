"""Training augmentation: mirroring, scaling, framing, colour jitter and relighting of multi-view samples.

Pure functions of views in the frame they were rendered in, before one of them becomes the input view. Rotation about
the vertical is not here: any rendered view may be the input view (MultiViewDataset), which is the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.data.config import AugmentConfig
from nova3d.errors import InputError
from nova3d.images import FOREGROUND_RATIO
from nova3d.views import ViewSet

STREAM = 2  # of the random numbers; MultiViewDataset.address uses 0 and 1
SAME_POSE = 1e-4
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Augmentation:
    """The changes of one sample.

    Attributes:
        mirror: whether it is mirrored.
        scale: factor of the size.
        colour: [3,3], the linear map of RGB, row by row.
        lamp: [3], direction of the light in the world frame of the views, times its strength.
        framed: whether the size follows from the input view's outline instead of `scale`, as a photo is framed.
    """

    mirror: bool = False
    scale: float = 1.0
    colour: tuple[tuple[float, ...], ...] = IDENTITY
    lamp: tuple[float, ...] = (0.0, 0.0, 0.0)
    framed: bool = False


UNCHANGED = Augmentation()


def check(config: AugmentConfig) -> None:
    """Raise InputError for a value out of its range."""
    demands = [
        (0 <= config.mirror <= 1, "data.augment.mirror is a share: 0 to 1"),
        (
            len(config.scale) == 2 and 0.5 <= config.scale[0] <= config.scale[1] <= 2,
            "data.augment.scale must be two numbers in order, between 0.5 and 2",
        ),
        (0 <= config.frame <= 1, "data.augment.frame is a share: 0 to 1"),
        (0 <= config.hue_deg <= 180, "data.augment.hue_deg must lie between 0 and 180"),
        (
            all(0 <= x < 1 for x in (config.saturation, config.brightness, config.light)),
            "data.augment.saturation, brightness and light must lie between 0 and 1, 1 left out",
        ),
    ]
    for met, message in demands:
        if not met:
            raise InputError(message)


def check_rig(config: AugmentConfig, cameras: Cameras) -> None:
    """Raise InputError where the rig does not allow the settings of `config`."""
    if config.mirror:
        mirror_order(cameras)
    if config.scale != [1.0, 1.0] or config.frame:
        check_scalable(cameras)


def draw(config: AugmentConfig, seed: int, position: int) -> Augmentation:
    """Draw the changes of one sample, a function of the arguments alone.

    The random numbers of one key do not depend on the values of the others.

    Args:
        config: what may change.
        seed: of the run.
        position: of the sample in the run.

    Returns:
        The changes.
    """
    if not config.active:
        return UNCHANGED
    rng = np.random.default_rng([seed, STREAM, position])
    mirror, size, hue, saturation, brightness = rng.random(5).tolist()
    side = rng.standard_normal(3)
    framing = rng.random()
    low, high = config.scale
    return Augmentation(
        mirror=mirror < config.mirror,
        scale=low * (high / low) ** size,
        framed=framing < config.frame,
        colour=colour_map(
            math.radians(config.hue_deg) * (2 * hue - 1),
            1 + config.saturation * (2 * saturation - 1),
            1 + config.brightness * (2 * brightness - 1),
        ),
        lamp=tuple((config.light * side / np.linalg.norm(side)).tolist()),
    )


def apply(views: ViewSet, change: Augmentation, input_view: int = 0) -> ViewSet:
    """Apply an augmentation.

    Args:
        views: v views of an object, in the frame they were rendered in.
        change: what changes.
        input_view: the view that will be the input view; `framed` depends on its outline.

    Returns:
        The views of the changed object, from the same cameras.

    Raises:
        InputError: where the rig does not allow the change.
    """
    if change.mirror:
        views = mirrored(views)
    factor = framing_scale(views.mask[input_view]) if change.framed else change.scale
    if factor != 1:
        views = scaled(views, factor)
    if change.colour != IDENTITY or any(change.lamp):
        views = recoloured(views, change.colour, change.lamp)
    return views


def mirrored(views: ViewSet) -> ViewSet:
    """Mirror the object at the plane x = 0 of the world frame.

    Pictures flip, normals change the sign of x, and each camera takes the picture of its mirror image (in a full ring
    of n, view v that of view (n - v) mod n).
    """
    order = mirror_order(views.cameras)
    rgb, normals, mask = (part[order].flip(2) for part in (views.rgb, views.normals, views.mask))
    return ViewSet(rgb, normals * normals.new_tensor([-1.0, 1.0, 1.0]), mask, views.cameras)


def mirror_order(cameras: Cameras) -> list[int]:
    """Return the index of every camera's mirror image at x = 0.

    The mirror image has the pose M c2w M with M = diag(-1, 1, 1, 1), and a principal point as far from the right edge
    as the camera's own from the left. Raises InputError where the rig has none.
    """
    reflection = torch.diag(cameras.c2w.new_tensor([-1.0, 1.0, 1.0, 1.0]))
    poses = reflection @ cameras.c2w @ reflection
    lenses = cameras.intrinsics.clone()
    lenses[:, 2] = cameras.width - lenses[:, 2]
    apart = (poses[:, None] - cameras.c2w[None]).abs().amax(dim=(2, 3))
    apart = torch.maximum(apart, (lenses[:, None] - cameras.intrinsics[None]).abs().amax(dim=2) / cameras.width)
    nearest = apart.min(dim=1)
    if (nearest.values > SAME_POSE).any():
        view = int((nearest.values > SAME_POSE).nonzero()[0])
        raise InputError(f"the rig has no mirror image of its view {view}: set data.augment.mirror=0")
    return nearest.indices.tolist()


def scaled(views: ViewSet, factor: float) -> ViewSet:
    """Scale the object about the world's origin by `factor`, or by less where it would leave a picture.

    Raises InputError unless pictures scale as the object does: orthographic cameras, the origin in the middle.
    """
    check_scalable(views.cameras)
    factor = min(factor, max_scale(views.mask))
    if factor == 1:
        return views
    theta = views.rgb.new_tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]]).expand(len(views), 2, 3)
    mask = views.mask[..., None]
    # grid_sample pads with zeros: colours are inverted, so that the padding is white.
    layers = torch.cat([1 - views.rgb, views.normals * mask, mask], dim=-1).permute(0, 3, 1, 2)
    grid = F.affine_grid(theta, list(layers.shape), align_corners=False)
    sampled = F.grid_sample(layers, grid, align_corners=False).permute(0, 2, 3, 1)
    ink, normals, mask = sampled.split([3, 3, 1], dim=-1)
    return ViewSet(1 - ink, F.normalize(normals, dim=-1) * (mask > 0), mask[..., 0], views.cameras)


def framing_scale(mask: Tensor) -> float:
    """Return the factor by which a mask's [h,w] longest side fills the share of the picture that a photo's does."""
    covered = [(mask > 0.5).any(dim=dim).nonzero() for dim in (0, 1)]
    longest = max((int(c[-1]) - int(c[0]) + 1 for c in covered if len(c)), default=0)
    return FOREGROUND_RATIO * mask.shape[1] / longest if longest else 1.0


def max_scale(mask: Tensor) -> float:
    """Return the greatest factor, at least 1, that keeps what masks [v,h,w] cover a pixel away from the borders."""
    factors = [math.inf]
    for dim, length in ((1, mask.shape[1]), (2, mask.shape[2])):
        covered = (mask > 0).amax(dim=(0, 3 - dim)).nonzero()
        if len(covered):
            farthest = max(length / 2 - int(covered[0]), int(covered[-1]) + 1 - length / 2)
            factors.append(length / 2 / (farthest + 1))
    return max(1.0, min(factors))


def check_scalable(cameras: Cameras) -> None:
    """Raise InputError unless scaling an object scales its pictures about their middle."""
    middle = cameras.intrinsics.new_tensor([cameras.width / 2, cameras.height / 2])
    pixels, _ = cameras.project(torch.zeros(1, 3).to(cameras.c2w))
    if cameras.model != "orthographic" or (pixels - middle).abs().max() > 1e-2:
        raise InputError(
            "data.augment.scale needs orthographic cameras with the world's origin in the middle of every picture"
        )


def recoloured(views: ViewSet, colour: Sequence[Sequence[float]], lamp: Sequence[float]) -> ViewSet:
    """Change the object's colours; the white background, mask and normals stay as they are.

    Args:
        views: v views.
        colour: [3,3], a linear map of RGB.
        lamp: [3]; colours are multiplied by 1 + n . lamp for the unit normals n, then clipped to [0,1].

    Returns:
        The changed views.
    """
    alpha = views.mask[..., None]
    own = (views.rgb - (1 - alpha)).clamp_min(0)  # premultiplied: a linear map needs no division by alpha
    brighter = 1 + views.normals @ views.normals.new_tensor(lamp)
    changed = torch.einsum("ij,vhwj->vhwi", own.new_tensor(colour), own) * brighter[..., None]
    changed = torch.minimum(changed.clamp_min(0), alpha)
    return replace(views, rgb=changed + (1 - alpha))


def colour_map(hue: float, saturation: float, brightness: float) -> tuple[tuple[float, ...], ...]:
    """Return the linear map [3,3] of RGB that changes hue, saturation and brightness.

    Args:
        hue: rotation about the grey axis, in radians.
        saturation: factor of the distance from the grey axis.
        brightness: factor of all.

    Returns:
        The rows of the map; IDENTITY for 0, 1, 1.
    """
    if (hue, saturation, brightness) == (0, 1, 1):
        return IDENTITY
    grey = np.full((3, 3), 1 / 3)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = math.cos(hue) * np.eye(3) + (1 - math.cos(hue)) * grey + math.sin(hue) * axis
    return tuple(map(tuple, (brightness * (grey + saturation * (turn - grey))).tolist()))
