import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nova3d import cameras
from nova3d.cameras import Cameras
from nova3d.errors import InputError


def test_orbit_follows_the_written_convention() -> None:
    rig = cameras.orbit(16, elevation_deg=0, radius=2.0)
    torch.testing.assert_close(rig.c2w[0, :3, :3], torch.eye(3))
    torch.testing.assert_close(rig.c2w[0, :3, 3], torch.tensor([0.0, 0.0, 2.0]))
    quarter = torch.tensor([2.0, 0.0, 0.0])  # 90 degrees, counter-clockwise from above: on +X
    torch.testing.assert_close(rig.c2w[4, :3, 3], quarter, atol=1e-6, rtol=0)
    torch.testing.assert_close(rig.c2w[:, :3, 2] * 2, rig.c2w[:, :3, 3])  # every camera faces the origin
    assert (rig.c2w[:, 1, 1] > 0.99).all()  # and stands upright


def test_elevation_lifts_the_camera() -> None:
    rig = cameras.orbit(4, elevation_deg=30, radius=2.0)
    torch.testing.assert_close(rig.c2w[:, 1, 3], torch.full((4,), 1.0))


def test_orthographic_projection_by_hand() -> None:
    rig = cameras.orbit(16, size=256)  # 1.5 world units over 256 pixels
    pixels, depth = rig.project(torch.tensor([[0.0, 0.0, 0.0], [0.75, 0.0, 0.0], [0.0, 0.375, 0.5]]))
    expected = torch.tensor([[128.0, 128.0], [256.0, 128.0], [128.0, 64.0]])
    torch.testing.assert_close(pixels[0], expected)
    torch.testing.assert_close(depth[0], torch.tensor([1.5, 1.5, 1.0]))
    # from +X (view 4) the world's +Z is to the left of the picture
    left = torch.tensor([[128.0 - 0.5 / 1.5 * 256, 64.0]])
    torch.testing.assert_close(pixels[4, 2:], left)


def test_perspective_projection_by_hand() -> None:
    rig = cameras.orbit(4, size=100, model="perspective", fov_deg=90, radius=2.0)  # focal length 50 pixels
    pixels, depth = rig.project(torch.tensor([[0.5, 0.25, 1.0], [0.0, 0.0, 3.0]]))
    torch.testing.assert_close(pixels[0, 0], torch.tensor([75.0, 37.5]))  # one unit away: 50 * 0.5, 50 * 0.25
    torch.testing.assert_close(depth[0], torch.tensor([1.0, -1.0]))  # the second is behind the camera
    torch.testing.assert_close(pixels[2, 0], torch.tensor([50 - 25 / 3, 50 - 12.5 / 3]))  # from behind, 3 units away


@pytest.mark.parametrize("model", ["orthographic", "perspective"])
@settings(max_examples=25)
@given(st.floats(-60, 60), st.floats(0, 360), st.floats(0.05, 2.0), st.integers(3, 9), st.integers(3, 9))
def test_points_on_a_ray_project_to_its_pixel(
    model: Any, elevation: float, azimuth: float, distance: float, width: int, height: int
) -> None:
    rig = cameras.orbit(3, elevation, 8, model, radius=2.5, start_azimuth_deg=azimuth).resized(width, height)
    origins, directions = rig.rays()
    assert origins.shape == (3, height, width, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(3, height, width))
    for view in range(3):
        points = (origins + distance * directions)[view].reshape(-1, 3)
        pixels, depth = rig.project(points)
        torch.testing.assert_close(pixels[view].reshape(height, width, 2), rig.pixel_centres(), atol=2e-3, rtol=0)
        assert (depth[view] > 0).all()


def test_a_unit_cube_fits_the_default_image_whatever_its_yaw() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3)
    pixels, _ = cameras.preset("ortho16").project(corners)
    assert pixels.min() > 0
    assert pixels.max() < 256


def _read_as_f(pixels: torch.Tensor, cells: list[tuple[int, int]]) -> bool:
    """Whether projected cell centres [n,2] have the letter's own order: columns to the right, rows down."""
    wanted = torch.tensor(cells, dtype=torch.float32)
    centred, target = pixels - pixels.mean(0), wanted - wanted.mean(0)
    scale = centred[:, 1].abs().max() / target[:, 1].abs().max()
    return torch.allclose(centred, target * scale, atol=1e-2)


@pytest.mark.parametrize("name", ["ortho16", "persp16"])
def test_a_letter_reads_right_in_front_and_mirrored_behind(name: str, letter_f: list[tuple[int, int]]) -> None:
    points = torch.tensor([[(c - 1) * 0.1, (2 - r) * 0.1, 0.0] for c, r in letter_f])  # facing +Z, upright
    pixels, _ = cameras.preset(name).project(points)
    mirrored = [(2 - c, r) for c, r in letter_f]
    assert _read_as_f(pixels[0], letter_f)
    assert not _read_as_f(pixels[0], mirrored)
    assert _read_as_f(pixels[8], mirrored)


def test_azimuth_elevation_are_what_the_orbit_was_asked_for() -> None:
    angles = cameras.orbit(16, elevation_deg=30).azimuth_elevation()
    torch.testing.assert_close(angles[:, 0], torch.arange(16) * math.pi / 8, atol=1e-6, rtol=0)
    torch.testing.assert_close(angles[:, 1], torch.full((16,), math.radians(30)))


def test_azimuth_just_below_a_full_turn_is_zero() -> None:
    c2w = cameras.look_from(torch.tensor([-1e-8]), torch.zeros(1), 1.0)
    assert Cameras(c2w, torch.ones(1, 4), 2, 2).azimuth_elevation()[0, 0] == 0


def test_resized_keeps_the_field_of_view() -> None:
    rig = cameras.preset("persp16", 256)
    points = torch.tensor([[0.3, -0.2, 0.1]])
    small = rig.resized(64, 128)
    torch.testing.assert_close(small.project(points)[0], rig.project(points)[0] * torch.tensor([0.25, 0.5]))
    assert (small.width, small.height) == (64, 128)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="ortho16, persp16"):
        cameras.preset("orto16")


def test_indexing_keeps_the_view_axis() -> None:
    rig = cameras.orbit(6)
    assert len(rig[2]) == 1
    assert torch.equal(rig[[4, 1]].c2w, rig.c2w[[4, 1]])
    assert len(rig[1:4]) == 3
    with pytest.raises(ValueError, match="intrinsics"):
        Cameras(rig.c2w, rig.intrinsics[:2], 8, 8)


def test_preset_families_take_any_number_of_views() -> None:
    assert len(cameras.preset("ortho4")) == 4
    assert cameras.preset("persp7").model == "perspective"
