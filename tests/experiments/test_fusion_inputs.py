import pytest
import torch

from nova3d.cameras import orbit
from nova3d.experiments.fusion_inputs import perturb_poses, plant_conflicts
from nova3d.metrics.poses import pose_errors
from nova3d.views import ViewSet


@pytest.fixture
def views() -> ViewSet:
    """A disc in each of 8 views of 96 px, smooth colours of three different channels, unit normals."""
    rig = orbit(8, size=96)
    offset = (rig.pixel_centres() - 48) / 96
    mask = (offset.norm(dim=-1) < 0.4).float().expand(8, 96, 96).clone()
    x, y = offset.unbind(dim=-1)
    rgb = torch.stack([0.5 + 0.4 * (20 * x).sin(), 0.3 + 0.2 * (15 * y).sin(), 0.1 + 0 * x], dim=-1)
    normals = torch.nn.functional.normalize(torch.stack([x, y, 0.5 + 0 * x], dim=-1), dim=-1)
    rgb, normals = (images.expand(8, 96, 96, 3) for images in (rgb, normals))
    return ViewSet(torch.where(mask[..., None] > 0, rgb, 1.0), normals * mask[..., None], mask, rig)


@pytest.mark.parametrize("degrees", [0.5, 3.0, 90.0])
def test_angles_are_exactly_as_asked(views, degrees):
    moved = perturb_poses(views, degrees, 0.0, seed=0)
    errors = pose_errors(moved.cameras.c2w, views.cameras.c2w)
    assert float(errors[0]) == 0
    torch.testing.assert_close(errors[1:], torch.full((7,), degrees).to(errors), rtol=0, atol=1e-3)
    # about the origin: every camera looks at it from as far away as before
    before, after = views.cameras.c2w[:, :3, 3], moved.cameras.c2w[:, :3, 3]
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))
    turned = moved.cameras.c2w[:, :3, :3]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).expand(8, 3, 3), atol=1e-5, rtol=0)


def test_shifts_are_exactly_as_asked_and_across_the_view(views):
    moved = perturb_poses(views, 0.0, 0.03, seed=0)
    shift = moved.cameras.c2w[:, :3, 3] - views.cameras.c2w[:, :3, 3]
    torch.testing.assert_close(shift.norm(dim=-1), torch.tensor([0.0] + [0.03] * 7), rtol=0, atol=1e-6)
    assert float((shift * views.cameras.c2w[:, :3, 2]).sum(-1).abs().max()) < 1e-6
    assert torch.equal(moved.cameras.c2w[:, :3, :3], views.cameras.c2w[:, :3, :3])


def test_only_cameras_change_and_view_0s_does_not(views):
    moved = perturb_poses(views, 5.0, 0.05, seed=0)
    assert torch.equal(moved.cameras.c2w[0], views.cameras.c2w[0])
    for name in ("rgb", "normals", "mask"):
        assert torch.equal(getattr(moved, name), getattr(views, name))
    assert torch.equal(moved.cameras.intrinsics, views.cameras.intrinsics)


def test_axes_differ_between_views_and_seeds(views):
    first, again, other = (perturb_poses(views, 3.0, 0.02, seed).cameras.c2w for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first[1:], other[1:])
    turns = first[1:, :3, :3] @ views.cameras.c2w[1:, :3, :3].mT
    assert float(torch.cdist(turns.flatten(1), turns.flatten(1)).add(torch.eye(7)).min()) > 1e-3


def test_planted_faults_are_within_patches_on_the_object_of_the_chosen_views(views):
    faulty, changed, patches = plant_conflicts(views, seed=0, count=3)
    differs = (faulty.rgb != views.rgb).any(dim=-1) | ((faulty.normals - views.normals).norm(dim=-1) > 1e-6)
    assert not bool((differs & ~patches).any())
    assert not bool((changed & ~patches).any())
    assert bool((views.mask[patches] > 0.99).all())
    hit = patches.flatten(1).any(dim=1)
    assert int(hit.sum()) == 3
    assert not bool(hit[0])
    assert torch.equal(changed.flatten(1).any(dim=1), hit)
    assert torch.equal(faulty.mask, views.mask)
    assert torch.equal(faulty.cameras.c2w, views.cameras.c2w)


def test_changed_pixels_really_changed_and_clean_ones_did_not(views):
    faulty, changed, patches = plant_conflicts(views, seed=0)
    difference = (faulty.rgb - views.rgb).norm(dim=-1)
    assert 0.02 < float(changed.float().sum() / (views.mask > 0.5)[patches.flatten(1).any(dim=1)].sum()) < 0.5
    assert bool((difference[changed] > 0.05).all())
    assert bool((difference[~changed] <= 0.05).all())
    assert float(difference[~patches].max()) == 0
    assert bool(((faulty.rgb >= 0) & (faulty.rgb <= 1)).all())


def test_every_kind_of_fault_is_planted(views):
    faulty, _, patches = plant_conflicts(views, seed=0, count=7)
    before, after = views.rgb[patches], faulty.rgb[patches]
    hue = (before.sort(dim=-1)[0] - after.sort(dim=-1)[0]).abs().amax(dim=-1) < 1e-6
    assert bool((hue & ((before - after).norm(dim=-1) > 0.05)).any())
    gains = [(after - (before * gain).clamp(0, 1)).abs().amax(dim=-1) < 1e-6 for gain in (0.5, 1.8)]
    assert bool(gains[0].any())
    assert bool(gains[1].any())
    warped = (faulty.normals - views.normals).norm(dim=-1) > 1e-6
    assert bool(warped.any())
    assert not bool((warped & ~patches).any())
    torch.testing.assert_close(faulty.normals[warped].norm(dim=-1), torch.ones(int(warped.sum())))


def test_same_seed_same_faults(views):
    first, again, other = (plant_conflicts(views, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0].rgb, again[0].rgb)
    assert torch.equal(first[0].normals, again[0].normals)
    assert torch.equal(first[2], again[2])
    assert not torch.equal(first[2], other[2])


def test_views_without_an_object_are_left_alone(views):
    empty = ViewSet(
        torch.ones_like(views.rgb), torch.zeros_like(views.normals), torch.zeros_like(views.mask), views.cameras
    )
    faulty, changed, patches = plant_conflicts(empty, seed=0)
    assert torch.equal(faulty.rgb, empty.rgb)
    assert not bool((changed | patches).any())
