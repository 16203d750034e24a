"""The inflated outline against solids whose inflation is known, and its row renderer against the raster engine."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from skimage.measure import marching_cubes

from nova3d import cameras as rigs
from nova3d.data import render_object
from nova3d.evaluation.mesh_metrics import is_closed
from nova3d.inflate import inflate, inflated_mesh, inflated_views
from nova3d.metrics import mask_iou, normal_angle

SIZE, SPAN = 96, 1.5
PIXEL = SPAN / SIZE


def disc(radius: float, centre: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """[h,w] coverage of a disc in world units."""
    rig = rigs.preset("ortho16", SIZE)
    points = (rig.pixel_centres() - SIZE / 2) * PIXEL
    inside = (points[..., 0] - centre[0]).square() + (points[..., 1] + centre[1]).square() < radius**2
    return inside.float()


def test_a_disc_becomes_a_ball() -> None:
    solid = inflate(disc(0.5), PIXEL)
    points = (np.stack(np.meshgrid(*[np.arange(SIZE)] * 2), axis=-1) + 0.5 - SIZE / 2) * PIXEL
    squared = (points**2).sum(axis=-1)
    inner = squared < 0.45**2
    assert np.abs(np.sqrt(squared[inner] + solid.height[inner] ** 2) - 0.5).max() < 1.5 * PIXEL
    normal = np.concatenate([points * [1, -1], solid.height[..., None]], axis=-1)
    cosine = (solid.normal * normal / np.linalg.norm(normal, axis=-1, keepdims=True).clip(1e-6)).sum(axis=-1)
    assert cosine[squared < 0.4**2].min() > 0.97
    assert np.abs(np.linalg.norm(solid.normal, axis=-1)[inner] - 1).max() < 1e-5
    assert not solid.height[squared > 0.52**2].any()


def test_a_bar_becomes_a_cylinder_of_its_half_width() -> None:
    mask = np.zeros((SIZE, SIZE), np.float32)
    mask[10:86, 40:57] = 1  # 17 pixels wide: the axis is column 48, nine pixels from the first pixel outside
    solid = inflate(mask, PIXEL)
    assert solid.height[30:66, 48] == pytest.approx(9 * PIXEL, abs=1e-6)
    assert solid.radius[30:66, 41:56] == pytest.approx(9 * PIXEL, abs=1e-6)  # of the whole width, also near the rim
    assert not solid.radius[mask == 0].any()


def test_an_empty_outline_is_empty() -> None:
    solid = inflate(np.zeros((8, 8)), PIXEL)
    assert not solid.height.any() and not solid.normal.any() and not solid.radius.any()
    rig = rigs.preset("ortho16", 8)
    views = inflated_views(torch.zeros(8, 8, 4), rig)
    assert not views.mask.any() and bool((views.rgb == 1).all())


def test_the_first_view_is_the_picture_and_the_eighth_its_outlines_mirror_image() -> None:
    rig = rigs.preset("ortho16", SIZE)
    rng = torch.Generator().manual_seed(0)
    alpha = torch.maximum(disc(0.3, (0.1, 0.05)), disc(0.15, (-0.25, -0.2)))
    rgba = torch.cat([torch.rand(SIZE, SIZE, 3, generator=rng), alpha[..., None]], dim=-1)
    views = inflated_views(rgba, rig)
    assert torch.equal(views.mask[0], alpha)
    assert torch.allclose(views.rgb[0], rgba[..., :3] * alpha[..., None] + (1 - alpha[..., None]), atol=1e-6)
    assert float(mask_iou(views.mask[8:9], alpha.flip(1)[None])) > 0.96
    seen = (views.mask > 0.99)[..., None]
    assert bool(((views.normals.norm(dim=-1, keepdim=True) - 1).abs()[seen] < 1e-4).all())


def test_the_outline_s_mirror_image_is_exact_to_the_pixel() -> None:
    mask = torch.zeros(16, 16)
    mask[3:12, 2:7] = 1
    mask[6:9, 7:13] = 1
    rgba = torch.cat([torch.full((16, 16, 3), 0.5), mask[..., None]], dim=-1)
    behind = inflated_views(rgba, rigs.preset("ortho16", 16), supersample=1, only=[8]).mask[0]
    assert torch.equal(behind, mask.flip(1))


def test_the_row_renderer_sees_what_the_raster_engine_sees(tmp_path: Path) -> None:
    """The same solid as a mesh: marching cubes of its height field, drawn by the engine, in views from all sides."""
    rig = rigs.preset("ortho16", SIZE)
    alpha = torch.maximum(disc(0.28, (0.12, 0.1)), disc(0.2, (-0.2, -0.15)))
    rgba = torch.cat([torch.full((SIZE, SIZE, 3), 0.5), alpha[..., None]], dim=-1)
    views = inflated_views(rgba, rig)
    fine = 3
    height = inflate(np.kron(alpha.numpy(), np.ones((fine, fine))), PIXEL / fine).height
    depth = np.arange(-0.45, 0.45, PIXEL / 2)
    # Signed so that it is linear across the surface along z.
    field = np.where(height > 0, height, -PIXEL / 4)[..., None] - np.abs(depth)
    vertices, faces, _, _ = marching_cubes(field.astype(np.float32), 0.0)
    x = (vertices[:, 1] + 0.5) * PIXEL / fine - SPAN / 2
    y = SPAN / 2 - (vertices[:, 0] + 0.5) * PIXEL / fine
    z = depth[0] + vertices[:, 2] * PIXEL / 2
    mesh = trimesh.Trimesh(np.stack([x, y, z], axis=-1), faces[:, ::-1])
    path = tmp_path / "solid.glb"
    mesh.export(path)
    drawn = render_object(path, rig, normalise=False)
    assert float(mask_iou(views.mask, drawn.mask).min()) > 0.93
    inside = drawn.mask * (views.mask > 0.99)
    assert normal_angle(views.normals, drawn.normals, inside)["median"] < 12


def test_mixed_precision_around_it_changes_nothing() -> None:
    rig = rigs.preset("ortho16", SIZE)
    rgba = torch.cat([torch.full((SIZE, SIZE, 3), 0.5), disc(0.3)[..., None]], dim=-1)
    plain = inflated_views(rgba, rig)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = inflated_views(rgba, rig)
    assert torch.equal(plain.mask, mixed.mask) and torch.equal(plain.normals, mixed.normals)


def test_the_mesh_of_a_disc_is_a_closed_ball() -> None:
    rgba = torch.cat([torch.full((SIZE, SIZE, 3), 0.5), disc(0.5)[..., None]], dim=-1)
    mesh = inflated_mesh(rgba, PIXEL)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.05)
    assert mesh.bounds[:, 2] == pytest.approx([-0.5, 0.5], abs=1.5 * PIXEL)


def test_the_mesh_of_any_outline_is_closed_and_fills_it(tmp_path: Path) -> None:
    """Lines of single pixels, pixels that touch at a corner, holes, and an outline cut off by the picture's border."""
    rng = np.random.default_rng(0)
    blobs = np.kron(rng.random((12, 12)) < 0.5, np.ones((8, 8)))
    blobs[40, :] = 1
    blobs[:, 3] = 0
    alpha = torch.from_numpy(blobs).float()
    colours = torch.from_numpy(rng.random((SIZE, SIZE, 3))).float()
    mesh = inflated_mesh(torch.cat([colours, alpha[..., None]], dim=-1), PIXEL)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    assert is_closed(mesh)  # with points at one place welded: front and back coincide nowhere
    path = tmp_path / "solid.ply"
    mesh.export(path)
    rig = rigs.preset("ortho16", SIZE)[[0, 8]]
    drawn = render_object(path, rig, normalise=False, light="flat")
    assert float(mask_iou(drawn.mask[:1], alpha[None])) >= 0.97
    assert float(mask_iou(drawn.mask[1:], alpha.flip(1)[None])) >= 0.97
    row, column = np.argwhere(blobs)[50]
    for view, seen in ((0, column), (1, SIZE - 1 - column)):  # painted through and through
        assert torch.allclose(drawn.rgb[view, row, seen], colours[row, column], atol=0.2)


def test_the_mesh_of_an_empty_outline_has_no_faces() -> None:
    assert len(inflated_mesh(torch.zeros(8, 8, 4), PIXEL).faces) == 0


def test_other_rigs_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="level orthographic"):
        inflated_views(torch.zeros(SIZE, SIZE, 4), rigs.preset("persp16", SIZE))
    with pytest.raises(ValueError, match="does not fit"):
        inflated_views(torch.zeros(8, 8, 4), rigs.preset("ortho16", SIZE))
