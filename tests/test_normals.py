import torch
from hypothesis import given
from hypothesis import strategies as st

from nova3d import cameras, normals


@given(st.integers(0, 2**32 - 1))
def test_codec_keeps_components_within_half_a_step_and_the_mask(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator), dim=-1)
    encoded = normals.encode(unit)
    assert encoded.dtype == torch.uint8
    stored = encoded.float() / 127.5 - 1
    assert (stored - unit).abs().max() <= 0.5 / 127.5 + 1e-6
    decoded, mask = normals.decode(encoded)
    assert (decoded - unit).abs().max() <= 1 / 127.5  # rounding, then the length put back to one
    torch.testing.assert_close(decoded.norm(dim=-1), torch.ones(64))
    assert (mask > 0.98).all()


def test_background_is_grey_and_decodes_to_exactly_zero() -> None:
    encoded = normals.encode(torch.zeros(2, 3))
    assert set(encoded.flatten().tolist()) <= {127, 128}
    decoded, mask = normals.decode(encoded)
    assert (decoded == 0).all()
    assert (mask < 0.01).all()


def test_uint8_and_float_maps_decode_alike() -> None:
    encoded = torch.randint(0, 256, (9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for a, b in zip(normals.decode(encoded), normals.decode(encoded.float() / 255), strict=True):
        torch.testing.assert_close(a, b)


def test_axes_have_the_colours_of_the_convention() -> None:
    assert normals.encode(torch.tensor([1.0, 0.0, 0.0])).tolist() == [255, 128, 128]  # right: red
    assert normals.encode(torch.tensor([0.0, 0.0, 1.0])).tolist() == [128, 128, 255]  # to the viewer: blue
    assert normals.encode(torch.tensor([0.0, -1.0, 0.0])).tolist() == [128, 0, 128]


def test_camera_frame_and_back() -> None:
    rig = cameras.orbit(4, elevation_deg=20, size=4)
    world = torch.nn.functional.normalize(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    there = normals.to_camera(world, rig.c2w)
    torch.testing.assert_close(normals.to_world(there, rig.c2w), world)
    assert (there - world).abs().max() > 0.1


def test_a_normal_facing_a_camera_is_plus_z_in_its_frame() -> None:
    rig = cameras.orbit(8, size=2)
    facing = rig.c2w[:, None, None, :3, 2].expand(8, 2, 2, 3)
    expected = torch.tensor([0.0, 0.0, 1.0]).expand(8, 2, 2, 3)
    torch.testing.assert_close(normals.to_camera(facing, rig.c2w), expected, atol=1e-6, rtol=0)


def test_view_zero_of_an_orbit_is_the_world_frame() -> None:
    world = torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normals.to_camera(world, cameras.orbit(4).c2w[:1]), world)
