"""The training set: addresses, and input views other than the first."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nova3d import cameras
from nova3d.data.multiview import MultiViewDataset
from nova3d.errors import InputError
from nova3d.rendering import render_object
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.raster import rasterize
from nova3d.training.data import LatentEncoder, ShardSource
from nova3d.views import yaw_rotation


def test_every_epoch_is_a_permutation_and_a_function_of_seed_and_position(
    tmp_path: Path, write_shards: Callable[..., Path]
) -> None:
    folder = str(write_shards(tmp_path / "s", 7))
    data = MultiViewDataset(folder, seed=3)
    addresses = [data.address(position) for position in range(21)]
    epochs = [[row for row, _ in addresses[k : k + 7]] for k in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert {view for _, view in addresses} == {0, 1, 2, 3}
    again = MultiViewDataset(folder, seed=3)
    assert [again.address(p) for p in reversed(range(21))] == addresses[::-1]
    assert [MultiViewDataset(folder, seed=4).address(p) for p in range(21)] != addresses
    assert {MultiViewDataset(folder, [2]).address(p)[1] for p in range(9)} == {2}
    with pytest.raises(InputError, match=r"0\.\.3"):
        MultiViewDataset(folder, [4])


@pytest.mark.parametrize("index", [1, 5])
def test_another_input_view_equals_rendering_the_turned_mesh(
    lopsided_file: Path, index: int, angle_deg: Callable[[Tensor, Tensor], Tensor]
) -> None:
    rig = cameras.orbit(8, 15.0, 48)
    turned = render_object(lopsided_file, rig, supersample=2, light="flat", normalise=False).rotated_to(index)
    mesh = load_mesh(lopsided_file)
    turn = yaw_rotation(-rig.azimuth_elevation()[index, 0])
    direct = rasterize(replace(mesh, vertices=mesh.vertices @ turn.T, normals=mesh.normals @ turn.T), rig, 2, "flat")
    alpha = direct.rgba[..., 3]
    assert ((turned.mask - alpha).abs() > 0.3).float().mean() < 1e-3
    inside = (turned.mask == 1) & (alpha == 1)
    assert inside.float().mean() > 0.05
    assert (turned.rgb - direct.rgba[..., :3])[inside].abs().mean() < 5e-3
    assert angle_deg(turned.normals, direct.normals)[inside].median() < 0.01
    assert (angle_deg(turned.normals, direct.normals)[inside] > 1).float().mean() < 0.02
    torch.testing.assert_close(turned.cameras.azimuth_elevation(), rig.azimuth_elevation(), atol=1e-5, rtol=0)
    unturned = render_object(lopsided_file, rig, supersample=2, light="flat", normalise=False)
    assert ((unturned.mask - alpha).abs() > 0.3).float().mean() > 0.02  # the object has no such symmetry


def test_cached_latents_follow_the_order_of_the_views(tmp_path: Path, write_shards: Callable[..., Path]) -> None:
    data = MultiViewDataset(str(write_shards(tmp_path / "s", 1)))

    class Vae(torch.nn.Module):
        """Eight channels of the 8x8 pixel means: a stand-in that keeps what is where."""

        def encode(self, x: Tensor) -> object:
            pooled = torch.nn.functional.avg_pool2d(x, 8).repeat(1, 3, 1, 1)[:, :8]
            return type("Output", (), {"latent_dist": type("Posterior", (), {"parameters": pooled})})

    kept, fresh = LatentEncoder(Vae(), "cpu"), LatentEncoder(Vae(), "cpu", keep=False)
    for view in (2, 0, 3):
        views, item = data.views(0, view), ShardSource(data).load(0, view)
        moments = kept.moments(item)
        assert moments.shape == (2, 4, 8, 3, 3)
        torch.testing.assert_close(moments, fresh.moments(item), atol=1e-3, rtol=0)  # kept as float16
        expected = torch.nn.functional.avg_pool2d((views.rgb * 2 - 1).permute(0, 3, 1, 2), 8)
        torch.testing.assert_close(moments[0, :, :3], expected, atol=1e-3, rtol=0)
