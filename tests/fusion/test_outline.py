import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage

from nova3d.calibration import Calibration
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.fusion import isosurface, reconstruct
from nova3d.fusion.config import ExtractConfig
from nova3d.fusion.occupancy import (
    Hull,
    distance_between_nodes,
    level_set_distance,
    signed_distance,
)
from nova3d.fusion.optimize import fit
from nova3d.fusion.outline import Outline, find_outline_view
from nova3d.hull import grid_points
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet

EVEN = Calibration((0.3,) * 8, (-0.9,) * 8, (0.5, 0.5, 0.5, 0.0, 0.0))
FIRST = (True, *[False] * 7)


def silhouette(mesh, size: int) -> torch.Tensor:
    return rasterize(from_trimesh([mesh]), orbit(1, size=size), supersample=2).rgba[0, ..., 3]


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("offset", [0.0, 0.04, -0.04])
def test_the_surface_has_the_outline_whatever_the_field(offset: float) -> None:
    """A ball that is too small, right or too large; the outline is a disc with a leg, a hole and a speck beside it."""
    size, radius, step = 256, 0.6, 1.2 / 128
    camera = orbit(1, size=size)
    x, y = (camera.pixel_centres() - size / 2).unbind(-1)
    inside = (torch.hypot(x, y) < 50) | ((x.abs() < 1.2) & (y > 0) & (y < 90)) | (torch.hypot(x - 70, y) < 5)
    mask = (inside & (torch.hypot(x + 20, y) > 10)).float()

    def ball(points: torch.Tensor) -> torch.Tensor:
        return points.norm(dim=-1) - 50 * 1.5 / size + offset

    outline = Outline.of(mask, camera, step)
    cached = ball(grid_points(64, radius)).reshape(64, 64, 64)
    bound = outline.bound(ball, cached, Hull(cached, radius), step)
    box = torch.tensor([[-radius] * 3, [radius] * 3])
    config = ExtractConfig(resolution=128, coarse=32, faces=40000)
    mesh = isosurface.extract_mesh(bound, box, config, radius, outline.cells_at(step), outline.parts)
    shown = silhouette(mesh, size)
    assert iou(shown, mask) > 0.95
    assert mesh.is_watertight
    parts = [ndimage.label(m.numpy() > 0.5, np.ones((3, 3)))[1] for m in (shown, mask)]
    assert parts[0] == parts[1] == 2 == outline.parts == isosurface.health(mesh)["components"]
    assert float(shown[size // 2 - 1, size // 2 - 20]) == 0  # the hole
    leg = shown[size // 2 + 60 : size // 2 + 85]
    assert bool((leg > 0.5).any(dim=1).all())  # two pixels wide, one step of marching cubes


def test_a_component_that_covers_nothing_new_goes_and_a_small_one_that_does_stays() -> None:
    def balls(points: torch.Tensor) -> torch.Tensor:
        main = points.norm(dim=-1) - 0.3
        hidden = (points - torch.tensor([0.0, 0.0, 0.45])).norm(dim=-1) - 0.08
        beside = (points - torch.tensor([0.45, 0.0, 0.0])).norm(dim=-1) - 0.03
        crumb = (points - torch.tensor([0.0, 0.45, 0.0])).norm(dim=-1) - 0.014
        return torch.stack([main, hidden, beside, crumb]).amin(dim=0)

    camera, step = orbit(1, size=128), 1.2 / 96
    cells = Outline(torch.zeros(128, 128), camera).cells_at(step)
    box, config = torch.tensor([[-0.6] * 3, [0.6] * 3]), ExtractConfig(resolution=96, coarse=32)
    plain = isosurface.extract_mesh(balls, box, config, 0.6)
    kept = isosurface.extract_mesh(balls, box, config, 0.6, cells, parts=2)
    assert plain.bounds[1] == pytest.approx([0.3, 0.3, 0.53], abs=0.01)
    assert kept.bounds[1] == pytest.approx([0.48, 0.3, 0.3], abs=0.01)


def test_when_an_outline_is_trusted(f_views, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert find_outline_view(f_views) is None and find_outline_view(replace(f_views, trusted=(True,) * 8)) is None
    assert not caplog.records
    views = replace(f_views, trusted=FIRST)
    assert find_outline_view(views) is None and "carry no calibration" in caplog.messages[-1]
    views = replace(views, calibration=EVEN)
    assert find_outline_view(views) == 0 and "the outline of view 0 is trusted" in caplog.messages[-1]
    for trusted in ((True, True, *[False] * 6), (False, True, *[False] * 6)):
        assert find_outline_view(replace(views, trusted=trusted)) is None
        assert "not one level orthographic view from the front" in caplog.messages[-1]


def test_the_fit_stays_near_the_first_solid_whatever_the_other_views_show(shapes, f_views) -> None:
    """The other views show a small ball: the solid is theirs and the outline's, the field alone would shrink to it."""
    other = shapes.draw(shapes.sphere(0.25), f_views.cameras)
    mask = torch.cat([f_views.mask[:1], other.mask[1:]])
    views = ViewSet(other.rgb, other.normals, mask, f_views.cameras, trusted=FIRST, calibration=EVEN)
    shares = []
    for weight in (0.0, 10.0):
        config = shapes.tiny_config()
        config.loss = replace(config.loss, solid=weight)
        state = fit(views, config)
        solid = state.hull.distance < 0
        far = state.hull.distance.abs() > 2 * state.margin
        shares.append(float((state.evaluate_grid() < 0)[far & solid].float().mean()))
        bounded = state.bounded_sdf(grid_points(48, 0.6)).reshape(solid.shape)
        assert torch.equal((bounded < 0)[far], solid[far])
    assert shares[1] > 0.95 and 1 - shares[0] > 2 * (1 - shares[1]), shares


def test_from_the_input_s_camera_the_mesh_is_the_input_whatever_the_other_views_show(shapes, f_views) -> None:
    other = shapes.draw(shapes.sphere(0.25), f_views.cameras)
    rgb, normals, mask = (x.clone() for x in (other.rgb, other.normals, other.mask))
    rgb[0], normals[0], mask[0] = f_views.rgb[0], f_views.normals[0], f_views.mask[0]
    views = replace(f_views, rgb=rgb, normals=normals, mask=mask, trusted=FIRST, calibration=EVEN)
    fine = shapes.draw(shapes.letter_f(), orbit(1, size=192))
    detail = replace(fine, normals=torch.zeros_like(fine.normals), trusted=(True,))
    config = shapes.tiny_config()
    config.optim.steps, config.conflict.polish_steps = 30, 20
    config.extract = replace(config.extract, resolution=96, faces=6000)
    result = reconstruct(views, config, detail=detail)
    assert iou(silhouette(result.solid, 192), fine.mask[0]) > 0.96
    assert result.report["components"] == 1 and result.report["watertight"]
    assert float(result.conflict[0].abs().max()) == 0
    assert result.report["rotation_deg_max"] == 0
    again = reconstruct(views, config, detail=detail)
    assert torch.equal(torch.from_numpy(again.solid.vertices), torch.from_numpy(result.solid.vertices))
    without = reconstruct(replace(views, calibration=None), config)
    assert iou(silhouette(without.solid, 192), fine.mask[0]) < 0.7  # the hull of views that contradict each other


def test_a_known_depth_is_that_of_the_mesh_and_its_outline_stays(shapes, f_views) -> None:
    config = shapes.tiny_config()
    config.optim.steps, config.conflict.polish_steps = 30, 20
    config.extract = replace(config.extract, resolution=96, faces=6000)
    views = replace(f_views, trusted=FIRST, calibration=EVEN)
    fitted = reconstruct(views, config)
    config.extract = replace(config.extract, depth_ratio=0.1)
    made = reconstruct(views, config)
    for before, after in ((fitted.mesh, made.mesh), (fitted.solid, made.solid)):
        across, up, along = after.extents
        assert along == pytest.approx(0.1 * max(across, up)) and before.extents[2] > 1.5 * along
        assert np.array_equal(before.vertices[:, :2], after.vertices[:, :2])
        plain = trimesh.Trimesh(after.vertices, after.faces, process=False)
        assert np.allclose(after.face_normals, plain.face_normals, atol=1e-6)
        turned = before.vertex_normals * [1, 1, before.extents[2] / along]
        assert np.allclose(after.vertex_normals, turned / np.linalg.norm(turned, axis=1)[:, None], atol=1e-6)
    assert torch.equal(silhouette(made.solid, 192), silhouette(fitted.solid, 192))
    assert np.array_equal(np.asarray(made.mesh.visual.uv), np.asarray(fitted.mesh.visual.uv))
    assert made.report["depth_ratio"] == pytest.approx(0.1) and made.report["depth_known"]
    assert fitted.report["depth_ratio"] > 0.15 and not fitted.report["depth_known"]
    with pytest.raises(InputError, match=r"extract\.depth_ratio needs views made from one picture"):
        reconstruct(f_views, config)


def test_an_outline_passes_between_the_pixels_of_a_mask() -> None:
    """A disc and a slanted half-plane with soft edges: stairs of pixels would be up to half a pixel wrong."""
    y, x = np.mgrid[:64, :64].astype(np.float32)
    for exact in (np.hypot(x - 31.2, y - 30.7) - 20.3, 0.28 * (x - 30) + 0.96 * (y - 31.3)):
        found = level_set_distance(np.clip(0.5 - exact, 0, 1))
        error, depth = (values[8:-8, 8:-8] for values in (np.abs(found - exact), np.abs(exact)))
        assert error[depth < 0.5].max() < 0.1 and error[depth < 8].max() < 0.55
        assert np.array_equal(found < 0, exact < 0)
    assert (level_set_distance(np.ones((4, 4), np.float32)) < 0).all()


def test_a_consistent_volume_has_no_stairs() -> None:
    """A ball as log-odds: the surface of its nodes alone is half a step off, that of the level set is not."""
    n, radius = 48, 0.6
    step = 2 * radius / (n - 1)
    exact = (grid_points(n, radius).norm(dim=-1) - 0.31).reshape(n, n, n).numpy()
    disc = exact.min(axis=0)
    found = distance_between_nodes(exact < 0, -20 * exact, np.clip(0.5 - disc / step, 0, 1), radius).numpy()
    front = np.abs(exact) < step
    front[:, disc > -2 * step] = False  # where rays graze the ball, front and back are extended flat
    assert np.abs(found - exact)[front].max() < 0.15 * step
    assert np.abs(signed_distance(exact < 0, radius).numpy() - exact)[front].max() > 0.4 * step
    assert np.array_equal(found < 0, exact < 0)


def test_the_mesh_has_no_detail_finer_than_the_views(shapes, f_views, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ripple of two nodes on the fitted field goes; with finer pixels it stays."""
    views = replace(f_views, trusted=FIRST, calibration=EVEN)
    state = fit(views, shapes.tiny_config())
    points = grid_points(48, 0.6)
    fitted = state.sdf.sdf

    def rippled(x: torch.Tensor) -> torch.Tensor:
        return fitted(x) + 0.005 * torch.sin(x.sum(dim=-1) * (2 * np.pi / 0.05))

    near = state.hull.distance.flatten().abs() < state.margin
    plain = state.smooth_sdf()[0](points)[near], state.bounded_sdf(points)[near]
    state.sdf.sdf = rippled  # type: ignore[method-assign]
    sdf, values = state.smooth_sdf()
    coarse = sdf(points)[near]
    assert torch.allclose(coarse, values.flatten()[near], atol=1e-5)
    monkeypatch.setattr("nova3d.fusion.state._SMOOTH_PX", 0.1)
    fine = state.smooth_sdf()[0](points)[near]
    assert float((coarse - plain[0]).abs().mean()) < 0.3 * float((fine - plain[1]).abs().mean())
