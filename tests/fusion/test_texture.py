from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from nova3d.cameras import orbit
from nova3d.fusion import export, texture
from nova3d.fusion.atlas import unwrap
from nova3d.fusion.config import TextureConfig
from nova3d.fusion.levelling import ColourTransform, Levelling
from nova3d.rendering.meshes import from_trimesh
from nova3d.rendering.raster import rasterize
from nova3d.views import ViewSet


def paint_views(shapes, mesh: trimesh.Trimesh, **config) -> texture.Projector:
    views = shapes.draw(mesh, orbit(8, size=96))
    return texture.make_projector(views, mesh, torch.zeros_like(views.mask), TextureConfig(**config))


def test_painting_finds_the_right_faces_and_respects_occlusion(shapes):
    mesh = shapes.letter_f()
    views = paint_views(shapes, mesh)
    centres = torch.tensor([[-0.2, 0.0, 0.15], [-0.2, 0.0, -0.15], [-0.2, 0.45, 0.0]]).float()
    normals = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 1, 0]])
    colours, weight, _ = texture.blend_views(centres, normals, views)
    torch.testing.assert_close(colours[0] * 255, torch.tensor([220.0, 30, 30]), atol=3, rtol=0)
    torch.testing.assert_close(colours[1] * 255, torch.tensor([30.0, 30, 220]), atol=3, rtol=0)
    assert weight[2] == 0  # the top: no camera at elevation 0 sees it
    inside, hidden, _ = texture.blend_views(torch.zeros(1, 3) + torch.tensor([-0.2, 0, 0.05]), normals[:1], views)
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
        projector = texture.make_projector(broken, mesh, conflict * h, TextureConfig(top_views=k))
        colours, _, _ = texture.blend_views(point * 0.35, point, projector)
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
    picture, shares = texture.bake(welded, atlas, views, lambda p: torch.full((len(p), 3), 0.5))
    assert picture.shape == (128, 128, 3)
    assert 0.02 < shares["unseen_share"] < 0.5  # tops and bottoms
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
    seen_by = texture.make_projector(views, solid, torch.zeros_like(views.mask), TextureConfig(size=512))
    atlas = unwrap(solid, 512)
    picture, shares = texture.bake(solid, atlas, seen_by, lambda p: torch.full((len(p), 3), 0.5))
    mesh = export.textured(
        solid.vertices[atlas.source], atlas.faces, atlas.uv, picture, solid.vertex_normals[atlas.source]
    )
    assert psnr(shapes.draw(mesh, views.cameras[[0, 5, 10]]), views[[0, 5, 10]]) > 34
    assert psnr(shapes.draw(mesh, held_out.cameras), held_out) > 34
    assert shares["unseen_share"] < 0.05  # the poles, seen too slantingly


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
        seen_by = texture.make_projector(views, box, torch.zeros_like(views.mask), config)
        colours, weight, _ = texture.colour_points(points, normals, seen_by, lambda p: red.expand(len(p), 3).clone())
        assert (weight > 0).tolist() == [True, True, False, False]
        assert colours[0, 1] > 0.7
        assert bool((colours[2:, 1] > 0.2).all()) is smooth
        assert bool((colours[2:, 0] < 0.5).all()) is smooth


def hidden_psnr(mesh: trimesh.Trimesh, truth: ViewSet, shapes) -> float:
    """PSNR on the object over the views that the trusted view 0 does not see: those more than 90 degrees away."""
    away = [i for i in range(len(truth)) if abs(i - len(truth) / 2) < len(truth) / 4]
    return psnr(shapes.draw(mesh, truth.cameras[away]), truth[away])


def painted(solid: trimesh.Trimesh, views: ViewSet, detail: ViewSet | None, size: int = 384) -> trimesh.Trimesh:
    """A mesh textured from views of which view 0 is trusted where `detail` is given, at that resolution."""
    config = TextureConfig(size=size)
    plain = list(range(1, len(views))) if detail is not None else list(range(len(views)))
    others = views[plain]
    projector = texture.make_projector(others, solid, torch.zeros_like(others.mask), config)
    trusted = () if detail is None else (texture.make_trusted_projector(detail, solid, config),)
    return texture.texture_mesh(solid, projector, lambda p: torch.full((len(p), 3), 0.5), trusted)[0]


HUE = torch.tensor([[0.75, 0.2, 0.05], [0.05, 0.75, 0.2], [0.2, 0.05, 0.75]])
FAULTS = {
    "none": lambda rgb: rgb,
    "gain 0.8": lambda rgb: rgb * 0.8,
    "gain 1.2": lambda rgb: rgb * 1.2,
    "hue": lambda rgb: rgb @ HUE,
}


@pytest.fixture(scope="module")
def ball_views(shapes):
    """A painted ball of middling colours, 16 views of it, view 0 at four times their resolution, and a mesh for it."""
    ball = painted_ball(5.0)
    ball = export.coloured(ball, np.asarray(ball.visual.vertex_colors)[:, :3] / 255 * 0.75)
    views = shapes.draw(ball, orbit(16, size=96))
    detail = shapes.draw(ball, orbit(16, size=384)[[0]])
    return views, detail, trimesh.creation.icosphere(subdivisions=4, radius=0.4)


def spoilt(views: ViewSet, name: str) -> ViewSet:
    """The views with a fault in the colours of all but view 0."""
    object_only = views.mask[..., None]
    straight = (views.rgb - (1 - object_only)) / object_only.clamp_min(0.1)
    wrong = FAULTS[name](straight.clamp(0, 1)).clamp(0, 1) * object_only + 1 - object_only
    return type(views)(torch.cat([views.rgb[:1], wrong[1:]]), views.normals, views.mask, views.cameras)


@pytest.mark.parametrize("name", FAULTS)
def test_other_views_are_levelled_to_the_trusted_one(shapes, ball_views, name):
    views, detail, solid = ball_views
    mesh = painted(solid, spoilt(views, name), detail)
    found = hidden_psnr(mesh, views, shapes)
    unlevelled = hidden_psnr(painted(solid, spoilt(views, name), None), views, shapes)
    assert found > {"none": 50, "hue": 35}.get(name, 45)
    assert found > unlevelled + 15 or name == "none"
    assert psnr(shapes.draw(mesh, detail.cameras), detail) > 45


def steps_at_the_border(mesh: trimesh.Trimesh, shapes) -> float:
    """The colour steps from pixel to pixel where the trusted view fades out, over those beside it, in view 4."""
    seen = shapes.draw(mesh, orbit(16, size=192)[[4]])
    steps = (seen.rgb[0, 72:120, 1:] - seen.rgb[0, 72:120, :-1]).norm(dim=-1)
    edges = [round(96 - 192 / 1.5 * 0.4 * cosine) for cosine in (0.35, 0.15)]  # cosine of the angle to view 0
    beside = torch.cat([steps[:, edges[0] - 16 : edges[0]], steps[:, edges[1] : edges[1] + 16]], dim=1)
    return float(steps[:, edges[0] : edges[1]].mean() / beside.mean())


def nothing_levelled(mesh: trimesh.Trimesh, *_: object) -> Levelling:
    return Levelling(ColourTransform.identity(), torch.zeros(len(mesh.vertices), 3))


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "none"])
def test_no_border_shows_where_the_trusted_view_ends(shapes, name, monkeypatch):
    faint = painted_ball(5.0)
    colours = np.asarray(faint.visual.vertex_colors)[:, :3] / 255
    faint = export.coloured(faint, np.float32([0.6, 0.4, 0.3]) + 0.1 * (colours - 0.5))
    views, detail = shapes.draw(faint, orbit(16, size=96)), shapes.draw(faint, orbit(16, size=384)[[0]])
    solid = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    assert steps_at_the_border(painted(solid, spoilt(views, name), detail), shapes) <= 1.5
    monkeypatch.setattr(texture, "level", nothing_levelled)
    assert steps_at_the_border(painted(solid, spoilt(views, name), detail), shapes) > 2  # the measure sees a border


def test_without_a_colour_share_hidden_points_take_the_picture_s_own_colours(shapes, ball_views):
    views, detail, solid = ball_views
    config = TextureConfig(size=256)
    others = spoilt(views, "gain 0.8")[list(range(1, 16))]
    conflict, grey = torch.zeros_like(others.mask), lambda p: torch.full((len(p), 3), 0.5)
    trusted = (texture.make_trusted_projector(detail, solid, config),)
    found = {}
    for colour_share in (0.0, 1.0):
        seen_by = texture.make_projector(others, solid, conflict, config, torch.full((15,), colour_share))
        mesh, _, report = texture.texture_mesh(solid, seen_by, grey, trusted)
        found[colour_share] = shapes.draw(mesh, views.cameras)
        assert report["mirrored_share"] == pytest.approx((1 - report["trusted_share"]) * (1 - colour_share), abs=1e-5)
        assert 0.25 < report["trusted_share"] < 0.5
    inside = (found[0.0].mask[8] > 0.99) & (views.mask[8] > 0.99)
    through = (found[0.0].rgb[8] - views.rgb[0].flip(1))[inside]
    assert float(-10 * torch.log10(through.square().mean())) > 30  # the back is the front's mirror image
    assert psnr(found[1.0][[8]], views[[8]]) > 40


def test_a_side_seen_edge_on_does_not_smear_the_outline_s_pixels(shapes):
    """A black box whose picture has a grey rim of three pixels: its sides are black."""
    box = trimesh.creation.box((0.6, 0.8, 0.5)).subdivide_to_size(0.1)
    black = export.coloured(box, np.full((len(box.vertices), 3), 0.05, np.float32))
    views, detail = shapes.draw(black, orbit(16, size=64)), shapes.draw(black, orbit(16, size=256)[[0]])
    rim = detail.mask - torch.nn.functional.max_pool2d(-detail.mask[:, None], 7, 1, 3)[:, 0].neg()
    detail = replace(detail, rgb=detail.rgb + 0.5 * rim[..., None])
    others = views[list(range(1, 16))]
    config, colour_shares = TextureConfig(size=256), torch.zeros(15)
    seen_by = texture.make_projector(others, box, torch.zeros_like(others.mask), config, colour_shares)
    trusted = (texture.make_trusted_projector(detail, box, config),)
    mesh = texture.texture_mesh(box, seen_by, lambda p: torch.full((len(p), 3), 0.5), trusted)[0]
    side = shapes.draw(mesh, views.cameras[[4, 12]])
    assert float(side.rgb[side.mask > 0.99].median()) < 0.15
    front = shapes.draw(mesh, detail.cameras)
    assert psnr(front, detail) > 25  # the rim is painted where the picture sees it


def test_the_texture_grows_with_the_trusted_picture(ball_views):
    _, detail, solid = ball_views
    config = TextureConfig(size=256, most=2048)
    trusted = texture.make_trusted_projector(detail, solid, config)
    size = texture.texture_size(solid, (trusted,), config)
    texels = size**2 * 0.6 / solid.area  # about as many per unit of area as the picture has pixels
    assert texels == pytest.approx((384 / 1.5) ** 2, rel=0.1)
    assert texture.texture_size(solid, (trusted,), TextureConfig(size=256, most=384)) == 384
    assert texture.texture_size(solid, (trusted,), TextureConfig(size=2048, most=1024)) == 2048
