"""The consistent volume, and the facts of the level ring of cameras that it rests on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from nova3d.calibration import Calibration
from nova3d.cameras import Cameras, orbit, preset
from nova3d.hull import carve
from nova3d.inflate import inflate
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize
from nova3d.volume import (
    column_points,
    columns_are_rays,
    consistent_volume,
    log_odds,
    outline_columns,
    prior_features,
    silhouettes_of,
)

SIZE, NODES, RADIUS = 48, 40, 0.6
PIXEL = 1.5 / SIZE
CAMERAS = preset("ortho16", SIZE)
EVEN = Calibration((0.3,) * 8, (-0.9,) * 8, (0.5, 0.5, 0.5, 0.0, 0.0))  # any plausible one


def random_masks(seed: int, count: int = 16) -> Tensor:
    """Smooth blobs of any topology, inside the box."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(count, SIZE, SIZE)), (0, 3, 3))
    ball = np.hypot(*np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]) < 0.62
    return torch.from_numpy(((noise > rng.uniform(-0.05, 0.05)) & ball).astype(np.float32))


def prior_of(mask: Tensor) -> Tensor:
    return inflate(mask, PIXEL).prior


def random_solid(seed: int) -> trimesh.Trimesh:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(4):
        part = trimesh.creation.icosphere(subdivisions=2, radius=1.0)
        part.apply_scale(rng.uniform(0.05, 0.25, 3))
        part.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
        part.apply_translation(rng.uniform(-0.25, 0.25, 3))
        parts.append(part)
    return trimesh.util.concatenate(parts)


@settings(max_examples=6)
@given(st.integers(0, 1000))
def test_facts_of_the_ring_opposite_views_mirror_and_all_views_fill_the_same_rows(seed: int) -> None:
    mask = rasterize(from_trimesh([random_solid(seed)]), CAMERAS, supersample=4).rgba[..., 3]
    assert (mask[8:] - mask[:8].flip(-1)).abs().max() < 0.2  # samples on an edge may fall to either side
    assert (mask[8:] - mask[:8].flip(-1)).abs().mean() < 2e-3
    top = mask.amax(dim=-1)
    filled, empty = (top > 0.75).any(dim=0), (top > 0.25).any(dim=0)
    for row in top:
        assert bool((row[filled] > 0).all()) and bool((row[~empty] <= 0.25).all())


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_the_solid_covers_the_trusted_outline_and_nothing_else_and_has_its_parts(seed: int) -> None:
    masks = random_masks(seed)
    if not bool((masks[0] > 0).any()):
        return
    solid, _, known = consistent_volume(masks, CAMERAS, 0, prior_of(masks[0]), EVEN, NODES, RADIUS)
    columns = outline_columns(masks[0], CAMERAS[0], NODES, RADIUS)
    columns[[0, -1]], columns[:, [0, -1]] = False, False
    assert torch.equal(solid.any(dim=0), columns)
    parts, wanted = (ndimage.label(x.numpy(), np.ones((3,) * x.dim()))[1] for x in (solid, columns))
    assert parts == wanted
    assert bool((known[0] == 1).all()) and set(known.unique().tolist()) <= {0.0, 1.0}


def test_a_thin_line_of_a_fine_outline_is_covered() -> None:
    fine = torch.zeros(480, 480)
    fine[100:380, 239:242] = 1  # 0.009 world units, a third of a grid step
    coarse = torch.nn.functional.avg_pool2d(fine[None, None], 10)[0, 0]
    masks = coarse.expand(16, -1, -1)
    solid, _, _ = consistent_volume(masks, CAMERAS, 0, prior_of(coarse), EVEN, NODES, RADIUS, fine)
    rows = solid.any(dim=0).any(dim=1)
    axis = torch.linspace(-RADIUS, RADIUS, NODES)
    assert bool(rows[(axis > -0.43) & (axis < 0.43)].all())
    assert int(solid.any(dim=0).sum(dim=1).max()) <= 2


def test_true_views_that_are_believed_give_the_visual_hull() -> None:
    mesh = random_solid(5)
    masks = rasterize(from_trimesh([mesh]), CAMERAS, supersample=4).rgba[..., 3]
    strict = Calibration((0.0,) * 8, (-6.0,) * 8, (6.0, 0.0, 0.0, 0.0, 0.0))
    solid, _, known = consistent_volume(masks, CAMERAS, 0, prior_of(masks[0]), strict, 64, RADIUS)
    hull = carve(column_points(torch.ones(64, 64, dtype=torch.bool), RADIUS), masks, CAMERAS).reshape(64, 64, 64)
    assert float((solid & hull).sum() / (solid | hull).sum()) > 0.8
    assert float(known.mean()) > 0.99


def test_a_view_that_contradicts_the_others_is_unknown_there() -> None:
    disc = (CAMERAS[0].pixel_centres() - SIZE / 2).norm(dim=-1) < 0.4 / PIXEL
    masks = disc.float().expand(16, -1, -1).clone()
    masks[5, :, : SIZE // 2] = 0  # one view lost its left half
    masks[9, :4, :4] = 1  # and one has a speck far outside
    solid, _, known = consistent_volume(masks, CAMERAS, 0, prior_of(masks[0]), EVEN, NODES, RADIUS)
    assert float(known[5, SIZE // 2, 14]) == 0 and float(known[5, SIZE // 2, 40]) == 1
    assert float(known[9, 1, 1]) == 0
    others = [v for v in range(16) if v not in (5, 9)]
    assert float(known[others].mean()) > 0.98
    outlines = silhouettes_of(solid, CAMERAS, RADIUS)
    assert float((outlines[0] & disc).sum() / (outlines[0] | disc).sum()) > 0.9


@pytest.mark.parametrize("prior", [EVEN.prior, (0.5, 0.5, 0.5, 0.1, -0.1, 0.7, -0.3)])
def test_the_log_odds_are_the_sum_of_the_votes(prior: tuple[float, ...]) -> None:
    masks = random_masks(3)
    calibration = replace(
        EVEN, prior=prior, object=tuple(0.1 * k for k in range(8)), background=tuple(-0.2 * k for k in range(8))
    )
    columns = torch.zeros(NODES, NODES, dtype=torch.bool)
    columns[18, 23] = True
    shape = torch.tensor([0.2, 0.25])[:, None, None].expand(-1, NODES, NODES)
    field = log_odds(masks, CAMERAS, 0, shape, calibration, columns, RADIUS)
    assert torch.equal(field != 0, columns.expand(NODES, -1, -1))
    axis = torch.linspace(-RADIUS, RADIUS, NODES)
    point = torch.stack([axis[23], axis[18], axis[30]])
    features = prior_features(torch.tensor([[0.2], [0.25]]), point[2:])[0]
    expected = float(features[: len(prior)] @ torch.tensor(prior))
    pixels, _ = CAMERAS.project(point[None])
    for view in range(1, 16):
        k = min(view, 16 - view) - 1
        x, y = (pixels[view, 0] - 0.5).tolist()
        corner = [(math.floor(y) + i, math.floor(x) + j) for i in (0, 1) for j in (0, 1)]
        coverage = sum(float(masks[view][r, c]) * (1 - abs(y - r)) * (1 - abs(x - c)) for r, c in corner)
        expected += 0.1 * k * coverage - 0.2 * k * (1 - coverage)
    assert float(field[30, 18, 23]) == pytest.approx(expected, abs=1e-3)


def test_thin_parts_are_shallow_and_wide_ones_deep_to_their_rim() -> None:
    """A box 0.5 wide on legs 0.06 wide; the prior is the depth of a part that is as deep as it is wide, alone."""
    mask = torch.zeros(SIZE, SIZE)
    mask[14:28, 16:32] = 1
    mask[28:36, [16, 17, 30, 31]] = 1
    prior = inflate(mask, PIXEL).prior
    assert torch.equal(prior[1] > 0, mask > 0)
    silent = Calibration((0.0,) * 8, (0.0,) * 8, (0.0,) * 5 + (1.0, 0.0))
    solid, _, _ = consistent_volume(mask.expand(16, -1, -1), CAMERAS, 0, prior, silent, 64, RADIUS)
    depth = solid.sum(dim=0) * 2 * RADIUS / 63

    def node(world: float) -> int:
        return round((world + RADIUS) / (2 * RADIUS) * 63)

    middle = SIZE / 2
    leg, rim = ((node((middle - row) * PIXEL), node((column - middle) * PIXEL)) for row, column in ((33, 17), (21, 17)))
    assert 0 < float(depth[leg]) < 0.15
    assert float(depth[rim]) > 0.3


def test_other_rigs_are_told_apart() -> None:
    assert columns_are_rays(CAMERAS, 0) and not columns_are_rays(CAMERAS, 4)
    shifted = Cameras(CAMERAS.c2w, CAMERAS.intrinsics + torch.tensor([0, 0, 3.0, 0]), SIZE, SIZE)
    flat = Cameras(CAMERAS.c2w, CAMERAS.intrinsics * torch.tensor([1, 0.9, 1, 1]), SIZE, SIZE)
    for other in (orbit(16, 20.0, SIZE), orbit(16, size=SIZE, model="perspective"), shifted, flat):
        assert not columns_are_rays(other, 0)
        with pytest.raises(ValueError, match="does not look along the world's z axis"):
            consistent_volume(random_masks(0), other, 0, torch.zeros(2, SIZE, SIZE), EVEN)
