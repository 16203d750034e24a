"""Augmented views against renders of the changed mesh, and the draws by position."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nova3d import cameras
from nova3d.data import augment
from nova3d.data.augment import Augmentation, AugmentConfig
from nova3d.data.multiview import MultiViewDataset
from nova3d.errors import InputError
from nova3d.images import composite
from nova3d.rendering.meshes import Mesh, load_mesh
from nova3d.rendering.raster import rasterize
from nova3d.training.data import ItemReader, LatentEncoder, ShardSource
from nova3d.views import ViewSet
from tests.helpers.networks import tiny_autoencoder

OBJECTS = Path(__file__).parents[2] / "assets/objects"
RIG = cameras.orbit(16, size=64)
EVERYTHING = AugmentConfig(0.5, [0.8, 1.2], 30.0, 0.3, 0.3, 0.3)
Angle = Callable[[Tensor, Tensor], Tensor]


def render(mesh: Mesh, rig: cameras.Cameras = RIG) -> ViewSet:
    drawn = rasterize(mesh, rig, 4, "flat")
    return ViewSet(composite(drawn.rgba), drawn.normals, drawn.rgba[..., 3], rig)


def in_a_mirror(mesh: Mesh) -> Mesh:
    flip = mesh.vertices.new_tensor([-1.0, 1.0, 1.0])
    return replace(mesh, vertices=mesh.vertices * flip, normals=mesh.normals * flip, faces=mesh.faces.flip(1))


@pytest.fixture(scope="module", params=["kenfurniture_loungeChair", "qub_car_pack_SimpleCar"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    """A real mesh, turned and moved so that it has no symmetry about x = 0."""
    loaded = load_mesh(OBJECTS / f"{request.param}.glb")
    turn = cameras.look_from(torch.tensor([0.7]), torch.tensor([0.3]), 1.0)[0, :3, :3]
    moved = loaded.vertices @ turn.T * 0.7 + torch.tensor([0.08, 0.03, -0.05])
    return replace(loaded, vertices=moved, normals=loaded.normals @ turn.T)


@pytest.fixture(scope="module")
def views(mesh: Mesh) -> ViewSet:
    return render(mesh)


def test_framing_fills_the_share_of_the_picture_that_a_photo_fills(mesh: Mesh, views: ViewSet) -> None:
    for view in (0, 3):
        made = augment.apply(views, Augmentation(framed=True, scale=3.0), view)  # `scale` does not count
        covered = made.mask[view] > 0.5
        longest = max(int(covered.any(dim=dim).sum()) for dim in (0, 1))
        free = augment.max_scale(views.mask) > augment.framing_scale(views.mask[view])
        side = made.mask.shape[1]
        assert abs(longest - side * 2 / 3) <= 2 if free else longest <= side
        framed = replace(mesh, vertices=mesh.vertices * augment.framing_scale(views.mask[view]))
        if free:
            assert (made.mask - render(framed).mask).abs().mean() < 0.01
    assert augment.framing_scale(torch.zeros(8, 8)) == 1
    drawn = [augment.draw(AugmentConfig(frame=0.5), 0, position) for position in range(200)]
    assert 70 < sum(change.framed for change in drawn) < 130
    assert [c.scale for c in drawn] == [1.0] * 200
    with pytest.raises(InputError, match=r"data\.augment\.frame is a share"):
        augment.check(AugmentConfig(frame=2))


def assert_same(made: ViewSet, true: ViewSet, angle_deg: Angle, tolerance: float, degrees: float) -> None:
    """tolerance: the mean difference of pictures and masks; degrees: the median one of normals inside both masks."""
    inside = (made.mask == 1) & (true.mask == 1)
    assert inside.float().mean() > 0.02
    assert (made.mask - true.mask).abs().mean() < tolerance
    assert (made.rgb - true.rgb).abs().mean() < tolerance
    assert angle_deg(made.normals, true.normals)[inside].median() < degrees
    assert torch.equal(made.cameras.c2w, true.cameras.c2w)


def test_mirrored_views_are_those_of_the_mirrored_mesh(mesh: Mesh, views: ViewSet, angle_deg: Angle) -> None:
    made, true = augment.mirrored(views), render(in_a_mirror(mesh))
    assert_same(made, true, angle_deg, 1e-3, 0.5)
    assert (views.rgb - true.rgb).abs().mean() > 0.01  # the mesh has no such symmetry
    wrong_normals = replace(made, normals=views.normals[augment.mirror_order(RIG)].flip(2))  # x not negated
    inside = (made.mask == 1) & (true.mask == 1)
    assert angle_deg(wrong_normals.normals, true.normals)[inside].median() > 5
    again = augment.mirrored(made)
    assert torch.equal(again.rgb, views.rgb) and torch.equal(again.normals, views.normals)


def test_in_a_ring_view_v_comes_from_view_n_minus_v_and_other_rigs_are_refused() -> None:
    assert augment.mirror_order(RIG) == [(16 - v) % 16 for v in range(16)]
    assert augment.mirror_order(cameras.preset("persp16", 32)) == [(16 - v) % 16 for v in range(16)]
    half_a_step = cameras.orbit(4, size=32, start_azimuth_deg=45)
    assert augment.mirror_order(half_a_step) == [3, 2, 1, 0]
    for rig in (RIG[[0, 1, 2]], cameras.orbit(4, size=32, start_azimuth_deg=10)):
        with pytest.raises(InputError, match=r"no mirror image of its view .*data\.augment\.mirror=0"):
            augment.check_rig(AugmentConfig(mirror=0.5), rig)
        augment.check_rig(AugmentConfig(hue_deg=30), rig)
    off_centre = replace(RIG, intrinsics=RIG.intrinsics + torch.tensor([0, 0, 3.0, 0]))
    with pytest.raises(InputError, match="mirror image"):
        augment.mirror_order(off_centre)
    for rig in (off_centre, cameras.preset("persp16", 32)):
        with pytest.raises(InputError, match=r"data\.augment\.scale needs orthographic"):
            augment.check_rig(AugmentConfig(scale=[0.8, 1.0]), rig)


@pytest.mark.parametrize("factor", [0.75, 1.15])
def test_scaled_views_are_those_of_the_scaled_mesh(mesh: Mesh, views: ViewSet, angle_deg: Angle, factor: float) -> None:
    made, true = augment.scaled(views, factor), render(replace(mesh, vertices=mesh.vertices * factor))
    assert_same(made, true, angle_deg, 0.01, 3.0)  # resampled: details of a pixel blur
    length = made.normals.norm(dim=-1)
    torch.testing.assert_close(length, (made.mask > 0).float(), atol=1e-4, rtol=0)  # still unit, zero on background
    assert (made.rgb[made.mask == 0] == 1).all()
    assert float(made.mask.sum() / views.mask.sum()) == pytest.approx(factor**2, rel=0.02)


def test_an_object_never_grows_out_of_the_picture(views: ViewSet) -> None:
    made = augment.scaled(views, 2.0)
    border = torch.ones(64, 64, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (made.mask[:, border] == 0).all() and made.mask.sum() > views.mask.sum()
    at_the_border = replace(views, mask=torch.ones_like(views.mask))
    assert augment.scaled(at_the_border, 1.5) is at_the_border


def test_colours_and_light_leave_normals_mask_and_white_alone(views: ViewSet) -> None:
    colour = augment.colour_map(0.5, 1.3, 0.9)
    made = augment.recoloured(views, colour, (0.2, 0.1, -0.1))
    assert made.normals is views.normals and made.mask is views.mask
    assert (made.rgb[views.mask == 0] == 1).all()
    assert made.rgb.min() >= 0 and made.rgb.max() <= 1
    inside = views.mask == 1
    expected = views.rgb[inside] @ torch.tensor(colour).T
    expected = expected * (1 + views.normals[inside] @ torch.tensor([0.2, 0.1, -0.1]))[:, None]
    torch.testing.assert_close(made.rgb[inside], expected.clamp(0, 1), atol=1e-5, rtol=1e-5)
    half = replace(views, mask=torch.full_like(views.mask, 0.5), rgb=torch.full_like(views.rgb, 0.6))
    darker = augment.recoloured(
        half, augment.colour_map(0, 1, 0.5), (0, 0, 0)
    )  # its own colour is 0.2, behind it white
    torch.testing.assert_close(darker.rgb, torch.full_like(views.rgb, 0.55))


def test_the_colour_map_turns_keeps_greys_and_is_the_identity_for_no_change() -> None:
    assert augment.colour_map(0, 1, 1) == augment.IDENTITY
    turn = torch.tensor(augment.colour_map(2 * torch.pi / 3, 1, 1))  # a third of the circle: red becomes green
    torch.testing.assert_close(turn @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    for colour in ((1.0, 0.3, 1.0), (0.0, 0.2, 1.0), (2.5, 1.4, 0.5)):
        grey = torch.tensor(augment.colour_map(*colour)) @ torch.tensor([0.4, 0.4, 0.4])
        torch.testing.assert_close(grey, torch.full((3,), 0.4 * colour[2]))
    grey = torch.tensor(augment.colour_map(0.0, 0.0, 1.0)) @ torch.tensor([0.9, 0.3, 0.3])
    torch.testing.assert_close(grey, torch.full((3,), 0.5))


def test_draws_are_a_function_of_seed_and_position_and_keys_do_not_disturb_each_other() -> None:
    drawn = [augment.draw(EVERYTHING, 3, p) for p in range(200)]
    assert [augment.draw(EVERYTHING, 3, p) for p in reversed(range(200))] == drawn[::-1]
    assert [augment.draw(EVERYTHING, 4, p) for p in range(200)] != drawn
    assert 70 < sum(change.mirror for change in drawn) < 130
    assert all(0.8 <= change.scale <= 1.2 for change in drawn)
    assert max(torch.tensor([change.lamp for change in drawn]).norm(dim=1)) == pytest.approx(0.3, rel=1e-5)
    only_mirror = [augment.draw(AugmentConfig(mirror=0.5), 3, p) for p in range(200)]
    assert only_mirror == [Augmentation(mirror=change.mirror) for change in drawn]
    assert augment.draw(AugmentConfig(), 3, 0) == augment.UNCHANGED


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(mirror=1.5),
        AugmentConfig(scale=[1.2, 0.8]),
        AugmentConfig(scale=[1.0]),
        AugmentConfig(hue_deg=200),
        AugmentConfig(light=1.0),
    ],
)
def test_values_out_of_range_are_refused(config: AugmentConfig) -> None:
    with pytest.raises(InputError, match=r"data\.augment\."):
        augment.check(config)


def test_items_are_augmented_by_position_and_the_kept_latents_are_those_of_the_plain_object(
    tmp_path: Path, write_shards: Callable[..., Path]
) -> None:
    data = MultiViewDataset(str(write_shards(tmp_path / "s", 2)), seed=1)
    plain, reader = ItemReader(ShardSource(data)), ItemReader(ShardSource(data), augment=EVERYTHING)
    first = reader[0]
    assert first.augmented and not plain[0].augmented
    assert (first.uid, first.input_view) == (plain[0].uid, plain[0].input_view)
    assert first.frames is not None and torch.equal(first.picture, first.frames[0, 0])
    row, view = data.address(0)
    expected = augment.apply(data.reader.views(row), augment.draw(EVERYTHING, 1, 0)).rotated_to(view)
    assert torch.equal(first.frames[1], expected.normals.permute(0, 3, 1, 2))
    again = ItemReader(ShardSource(data), augment=EVERYTHING)
    assert [torch.equal(again[p].picture, reader[p].picture) for p in (3, 1, 0)] == [True] * 3

    torch.manual_seed(0)
    vae = tiny_autoencoder(4)
    kept, fresh = LatentEncoder(vae, "cpu"), LatentEncoder(vae, "cpu", keep=False)
    for item in (first, plain[0], first, plain[0]):
        torch.testing.assert_close(kept.moments(item), fresh.moments(item), rtol=2e-3, atol=2e-3)
