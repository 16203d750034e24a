"""Faults planted into true views, so that what mends them can be measured against what is known."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.fusion.poses import rotation_matrix
from nova3d.views import ViewSet

_CHANGED = 0.05  # ||change of colour|| from which a pixel counts as planted: less is within ordinary residuals
_FOREGROUND = 0.99


def perturb_poses(views: ViewSet, degrees: float, shift: float, seed: int) -> ViewSet:
    """Every camera but view 0's turned by `degrees` about a random axis through the origin, and moved by `shift`.

    The shift (world units) goes in a random direction across the viewing axis: along it an orthographic picture does
    not change. The pictures stay, so the cameras are wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    v = len(views)
    axis = F.normalize(torch.randn(v, 3, generator=generator), dim=-1)
    axis[0] = 0
    c2w = views.cameras.c2w.clone()
    angle = torch.rand(v, generator=generator) * 2 * math.pi
    across = angle.cos()[:, None] * c2w[:, :3, 0] + angle.sin()[:, None] * c2w[:, :3, 1]
    across[0] = 0
    turn = rotation_matrix(axis * math.radians(degrees)).to(c2w)
    moved = c2w.clone()
    moved[:, :3] = turn @ c2w[:, :3]
    moved[:, :3, 3] += shift * across
    return replace(views, cameras=replace(views.cameras, c2w=moved))


def pose_errors(found: ViewSet | Tensor, true: Tensor) -> Tensor:
    """[v] degrees between the rotations of c2w [v,4,4] and the true ones."""
    c2w = found.cameras.c2w if isinstance(found, ViewSet) else found
    relative = c2w[:, :3, :3].double() @ true[:, :3, :3].double().mT
    # atan2 of the sine and cosine: acos loses small angles
    sine = torch.stack(
        [
            relative[:, 2, 1] - relative[:, 1, 2],
            relative[:, 0, 2] - relative[:, 2, 0],
            relative[:, 1, 0] - relative[:, 0, 1],
        ],
        dim=-1,
    ).norm(dim=-1)
    return torch.atan2(sine, relative.diagonal(dim1=1, dim2=2).sum(dim=-1) - 1).rad2deg()


def plant_conflicts(views: ViewSet, seed: int, count: int = 4) -> tuple[ViewSet, Tensor, Tensor]:
    """`count` views, never view 0, each with three faults on the object; the others keep every pixel.

    A patch of another hue, a patch of another brightness (half or 1.8 times), and a patch whose colours and normals
    are warped by 2 to 4 pixels (at 256), each a disc over about an eighth of the object's height. Returns the views,
    bool [v,h,w] of the pixels whose colour changed, and bool [v,h,w] of all pixels of the patches: those in a patch
    that did not visibly change are neither conflict nor clean.
    """
    generator = torch.Generator().manual_seed(seed)
    v, h, w = views.mask.shape
    rgb, normals = views.rgb.clone(), views.normals.clone()
    patches = torch.zeros(v, h, w, dtype=torch.bool)
    chosen = (torch.randperm(v - 1, generator=generator)[:count] + 1).tolist()
    for view in chosen:
        solid = views.mask[view] > _FOREGROUND
        inside = torch.nonzero(solid)
        if len(inside) == 0:
            continue
        radius = max(3.0, float(inside[:, 0].max() - inside[:, 0].min()) / 8)
        for kind in ("hue", "gain", "warp"):
            centre = inside[int(torch.randint(len(inside), (1,), generator=generator))]
            disc = solid & (_distance(centre, h, w) < radius)
            patches[view] |= disc
            if kind == "warp":
                angle = float(torch.rand(1, generator=generator)) * 2 * math.pi
                length = (2 + 2 * float(torch.rand(1, generator=generator))) * h / 256
                shift = torch.tensor([math.cos(angle), math.sin(angle)]) * length
                for images in (rgb, normals):
                    images[view][disc] = _shifted(images[view], shift)[disc]
                normals[view] = F.normalize(normals[view], dim=-1)
            else:
                roll = 1 + int(torch.randint(2, (1,), generator=generator))
                gain = 0.5 if roll == 1 else 1.8
                pixels = rgb[view][disc]
                rgb[view][disc] = pixels.roll(roll, dims=-1) if kind == "hue" else (pixels * gain).clamp(0, 1)
    changed = patches & ((rgb - views.rgb).norm(dim=-1) > _CHANGED)
    return replace(views, rgb=rgb, normals=normals), changed, patches


def _distance(centre: Tensor, h: int, w: int) -> Tensor:
    """[h,w] distance in pixels to `centre` (row, column)."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return ((rows - centre[0]).float() ** 2 + (columns - centre[1]).float() ** 2).sqrt()


def _shifted(image: Tensor, shift: Tensor) -> Tensor:
    """[h,w,c] read `shift` (x, y) pixels away, bilinearly."""
    h, w = image.shape[:2]
    rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    grid = torch.stack([(columns + shift[0]) / w, (rows + shift[1]) / h], dim=-1) * 2 - 1
    found = F.grid_sample(image.permute(2, 0, 1)[None], grid[None], padding_mode="border", align_corners=False)
    return found[0].permute(1, 2, 0)
