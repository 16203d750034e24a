import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import orbit
from nova3d.fusion import export, texture
from nova3d.fusion.atlas import unwrap
from nova3d.fusion.config import TextureConfig
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet


def paint_views(shapes, mesh: trimesh.Trimesh, **config) -> texture.Projector:
    views = shapes.draw(mesh, orbit(8, size=96))
    return texture.make_projector(views, views.cameras, mesh, torch.zeros_like(views.mask), TextureConfig(**config))


def test_painting_finds_the_right_faces_and_respects_occlusion(shapes):
    mesh = shapes.letter_f()
    views = paint_views(shapes, mesh)
    centres = torch.tensor([[-0.2, 0.0, 0.15], [-0.2, 0.0, -0.15], [-0.2, 0.45, 0.0]]).float()
    normals = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 1, 0]])
    colours, weight = texture.blend_views(centres, normals, views)
    torch.testing.assert_close(colours[0] * 255, torch.tensor([220.0, 30, 30]), atol=3, rtol=0)
    torch.testing.assert_close(colours[1] * 255, torch.tensor([30.0, 30, 220]), atol=3, rtol=0)
    assert weight[2] == 0  # the top: no camera at elevation 0 sees it
    inside, hidden = texture.blend_views(torch.zeros(1, 3) + torch.tensor([-0.2, 0, 0.05]), normals[:1], views)
    assert hidden[0] == 0  # behind the front face by more than the tolerance
    assert torch.isfinite(inside).all()


def test_conflict_and_top_views_choose_who_paints(shapes):
    mesh = shapes.sphere()
    views = shapes.draw(mesh, orbit(4, size=64))
    wrong = views.rgb.clone()
    wrong[0] = torch.where(views.mask[0][..., None] > 0.5, torch.tensor([1.0, 0, 0]), wrong[0])
    broken = type(views)(wrong, views.normals, views.mask, views.cameras)
    conflict = torch.zeros_like(views.mask)
    conflict[0] = 1.0
    point = torch.nn.functional.normalize(torch.tensor([[0.5, 0.0, 1.0]]), dim=-1)
    true = torch.tensor([90, 160, 60]) / 255
    for h, k, expected in ((0, 1, torch.tensor([1.0, 0, 0])), (1, 0, true), (1, None, true)):
        projector = texture.make_projector(broken, views.cameras, mesh, conflict * h, TextureConfig(top_views=k))
        colours, _ = texture.blend_views(point * 0.35, point, projector)
        torch.testing.assert_close(colours[0], expected, atol=0.03, rtol=0)


def test_atlas_bake_is_sharp_where_seen_and_filled_where_not(shapes):
    mesh = shapes.letter_f()
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    views = paint_views(shapes, shapes.letter_f(), size=128)
    atlas = unwrap(welded)
    assert atlas.uv.min() >= 0
    assert atlas.uv.max() <= 1
    ids, face, weights = texture.rasterize_atlas(atlas, 128)
    assert len(ids) == len(set(ids.tolist()))
    corners = atlas.uv[atlas.faces[face]] * [128, -128] + [0, 128]
    position = np.einsum("mk,mkc->mc", weights, corners)
    np.testing.assert_allclose(position, np.stack([ids % 128 + 0.5, ids // 128 + 0.5], axis=-1), atol=1e-6)
    picture, unseen = texture.bake(welded, atlas, views, lambda p: torch.full((len(p), 3), 0.5))
    assert picture.shape == (128, 128, 3)
    assert 0.02 < unseen < 0.5  # tops and bottoms
    assert (picture.astype(int).sum(axis=-1) > 0).all()  # no black gap anywhere


@pytest.mark.parametrize("model", ["orthographic", "perspective"])
def test_depth_of_the_nearest_surface(shapes, model):
    mesh, cameras = shapes.letter_f(), orbit(5, 20.0, 48, model, radius=2.5)
    expected = rasterize(from_trimesh([mesh]), cameras, supersample=1, light="flat").depth
    torch.testing.assert_close(texture.depth_maps(mesh, cameras), expected, atol=1e-4, rtol=0)


def painted_ball(squares: float = 9.0) -> trimesh.Trimesh:
    """A ball with a soft pattern that is nowhere the same, finer than its mesh after decimation."""
    mesh = trimesh.creation.icosphere(subdivisions=6, radius=0.4)
    x, y, z = (squares * np.asarray(mesh.vertices)).T
    waves = np.stack([np.sin(2 * x + z), np.sin(2 * y - x), np.cos(2 * z + y)], axis=1)
    return export.coloured(mesh, 0.5 + 0.4 * waves)


def psnr(a: ViewSet, b: ViewSet) -> float:
    inside = (a.mask > 0.99) & (b.mask > 0.99)
    return float(-10 * torch.log10((a.rgb - b.rgb)[inside].square().mean()))


def test_a_baked_texture_looks_like_the_views_and_like_views_between(shapes):
    truth = painted_ball()
    views = shapes.draw(truth, orbit(16, size=96))
    held_out = shapes.draw(truth, orbit(4, size=96, start_azimuth_deg=11.25))
    solid = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    seen_by = texture.make_projector(views, views.cameras, solid, torch.zeros_like(views.mask), TextureConfig(size=512))
    atlas = unwrap(solid, 512)
    picture, unseen = texture.bake(solid, atlas, seen_by, lambda p: torch.full((len(p), 3), 0.5))
    mesh = export.textured(
        solid.vertices[atlas.source], atlas.faces, atlas.uv, picture, solid.vertex_normals[atlas.source]
    )
    assert psnr(shapes.draw(mesh, views.cameras[[0, 5, 10]]), views[[0, 5, 10]]) > 34
    assert psnr(shapes.draw(mesh, held_out.cameras), held_out) > 34
    assert unseen < 0.05  # the poles, seen too slantingly


def test_what_no_view_sees_meets_what_they_see(shapes):
    # Views say green, the field says red: no view sees the top of a box, and there the field's red is shifted to green.
    box = trimesh.creation.box((0.5, 0.3, 0.5))
    green = trimesh.Trimesh(box.vertices, box.faces, process=False, vertex_colors=np.tile([0, 200, 0, 255], (8, 1)))
    views = shapes.draw(green, orbit(4, size=64))
    top = torch.tensor([[0.0, 0.15, 0.23], [0.0, 0.15, 0.0]])
    side = torch.tensor([[0.0, 0.0, 0.25], [0.1, 0.1, 0.25]])
    points, normals = torch.cat([side, top]), torch.tensor([[0.0, 0, 1]] * 2 + [[0.0, 1, 0]] * 2)
    red = torch.tensor([0.8, 0.0, 0.0])
    for smooth in (True, False):
        config = TextureConfig(smooth_unseen=smooth)
        seen_by = texture.make_projector(views, views.cameras, box, torch.zeros_like(views.mask), config)
        colours, weight = texture.colour_points(points, normals, seen_by, lambda p: red.expand(len(p), 3).clone())
        assert (weight > 0).tolist() == [True, True, False, False]
        assert colours[0, 1] > 0.7
        assert bool((colours[2:, 1] > 0.2).all()) is smooth
        assert bool((colours[2:, 0] < 0.5).all()) is smooth
