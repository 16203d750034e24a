import importlib
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.fusion.rays import March, NerfaccMarcher, TorchMarcher, box_interval, pick_marcher
from nova3d.fusion.occupancy import Hull, grid_points

RADIUS, STEPS = 0.6, 40
BOX = torch.tensor([[-0.5, -0.4, -0.45], [0.4, 0.5, 0.3]])


def some_rays(count: int = 30) -> tuple[Tensor, Tensor]:
    """From all sides towards somewhere in the box; the last one passes it by."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * 2
    targets = (torch.rand(count, 3, generator=generator) - 0.5) * 0.8
    targets[-1] = origins[-1].flip(0) * 3
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def scalar_march(
    origin: list[float], direction: list[float], occupancy: Tensor
) -> tuple[float, list[bool], list[float]]:
    """Entry, whether each step is occupied, and how near each step's middle is to a cell's face."""
    low, high = BOX.tolist()
    enter, leave = 0.0, math.inf
    for axis in range(3):
        ends = sorted((bound - origin[axis]) / direction[axis] for bound in (low[axis], high[axis]))
        enter, leave = max(enter, ends[0]), min(leave, ends[1])
    size = math.dist(low, high) / STEPS
    occupied, slack = [], []
    for step in range(STEPS):
        t = enter + (step + 0.5) * size
        place = [(origin[a] + t * direction[a] + RADIUS) / (2 * RADIUS) * occupancy.shape[2 - a] for a in range(3)]
        x, y, z = (min(max(math.floor(p), 0), occupancy.shape[2 - a] - 1) for a, p in enumerate(place))
        occupied.append(t < leave and bool(occupancy[z, y, x]))
        slack.append(min(abs(t - leave), *(abs(p - round(p)) for p in place)))
    return enter, occupied, slack


def test_the_reference_marcher_equals_a_scalar_loop():
    occupancy = torch.rand(7, 9, 8, generator=torch.Generator().manual_seed(1)) > 0.5  # z y x, all different
    origins, directions = some_rays()
    march = TorchMarcher().march(origins, directions, occupancy, RADIUS, BOX, STEPS)
    assert march.edges.shape == (30, STEPS + 1)
    assert march.occupied.shape == (30, STEPS)
    size = float((BOX[1] - BOX[0]).norm()) / STEPS
    torch.testing.assert_close(march.edges.diff(dim=1), torch.full((30, STEPS), size), atol=1e-6, rtol=0)
    compared = 0
    for ray in range(29):
        enter, occupied, slack = scalar_march(origins[ray].tolist(), directions[ray].tolist(), occupancy)
        assert float(march.edges[ray, 0]) == pytest.approx(enter, abs=1e-5)
        for step in range(STEPS):
            if slack[step] > 1e-4:  # else float32 may round to the neighbouring cell
                compared += 1
                assert bool(march.occupied[ray, step]) == occupied[step]
    assert compared > 1100
    assert 0.1 < float(march.occupied.float().mean()) < 0.6
    assert not bool(march.occupied[29].any())  # it misses the box


def test_a_ray_from_within_the_box_starts_where_it_is():
    occupancy = torch.ones(4, 4, 4, dtype=torch.bool)
    march = TorchMarcher().march(torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]), occupancy, RADIUS, BOX, STEPS)
    assert float(march.edges[0, 0]) == 0
    middles = (march.edges[0, 1:] + march.edges[0, :-1]) / 2
    assert torch.equal(march.occupied[0], middles < 0.3)  # the box ends at z = 0.3


@pytest.mark.parametrize("model", ["orthographic", "perspective"])
def test_occupied_steps_hold_every_crossing_of_a_sphere(model):
    r, n, margin = 0.35, 48, 0.02
    hull = Hull((grid_points(n, RADIUS).norm(dim=-1) - r).reshape(n, n, n), RADIUS)
    cameras = orbit(3, 20.0, 24, model, radius=2.0)
    origins, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
    box, occupancy = hull.extent(margin), hull.occupancy(margin)
    march = TorchMarcher().march(origins, directions, occupancy, RADIUS, box, 128)
    nearest = -(origins * directions).sum(-1)
    gap2 = (origins + nearest[:, None] * directions).square().sum(-1)
    half = (r**2 - gap2).clamp_min(0).sqrt()
    hits = gap2 < r**2
    assert 100 < int(hits.sum()) < len(hits)
    for crossing in (nearest - half, nearest + half):
        step = torch.searchsorted(march.edges, crossing[:, None].contiguous())[:, 0] - 1
        assert bool(((step >= 0) & (step < 128))[hits].all())
        assert bool(march.occupied.gather(1, step.clamp(0, 127)[:, None])[:, 0][hits].all())
    # and it does skip: nothing of rays that pass far outside
    assert not bool(march.occupied[gap2 > (r + 0.08) ** 2].any())


def test_the_interval_of_rays_through_a_box():
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    origins = torch.tensor([[0.0, 0, 3], [0.5, 0.5, 0.5], [0, 0, -3], [5, 5, 5]])
    near, far = box_interval(origins, torch.tensor([[0.0, 0, -1]]).expand(4, 3), box)
    torch.testing.assert_close(near[:2], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(far[:2], torch.tensor([4.0, 1.5]))
    assert bool((far >= near).all())
    assert bool((far == near)[2:].all())  # behind the camera, and beside the box


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("cuda", "cpu", "sampling.backend 'cuda' is none of auto, torch, nerfacc"),
        ("nerfacc", "cpu", "sampling.backend 'nerfacc' does not work here (it needs CUDA): use auto or torch"),
        (
            "nerfacc",
            "cuda",
            "sampling.backend 'nerfacc' does not work here (not built for this one): use auto or torch",
        ),
    ],
)
def test_a_marcher_that_cannot_work_is_refused(monkeypatch, name, device, message):
    def imported(name: str) -> None:
        raise OSError("not built for this one")

    monkeypatch.setattr(importlib, "import_module", imported)
    with pytest.raises(InputError) as refused:
        pick_marcher(name, device)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_a_cpu_marches_with_torch(name):
    assert isinstance(pick_marcher(name, "cpu"), TorchMarcher)


def test_auto_on_cuda_takes_nerfacc_where_it_was_built_and_says_so(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "nova3d.fusion.rays")
    built = SimpleNamespace(_C=object())
    monkeypatch.setattr(importlib, "import_module", lambda name: built)
    assert isinstance(pick_marcher("auto", "cuda"), NerfaccMarcher)
    assert isinstance(pick_marcher("nerfacc", torch.device("cuda:1")), NerfaccMarcher)
    assert isinstance(pick_marcher("torch", "cuda"), TorchMarcher)
    built._C = None
    assert isinstance(pick_marcher("auto", "cuda"), TorchMarcher)
    assert caplog.messages == [
        "march: nerfacc",
        "march: nerfacc",
        "march: torch (nerfacc: its CUDA code could not be built)",
    ]


@pytest.mark.gpu
def test_nerfacc_marks_the_same_steps():
    pytest.importorskip("nerfacc")
    n = 48
    hull = Hull((grid_points(n, RADIUS).norm(dim=-1) - 0.35).reshape(n, n, n), RADIUS)
    box, occupancy = hull.extent(0.02).cuda(), hull.occupancy(0.02).cuda()
    origins, directions = (rays.reshape(-1, 3).cuda() for rays in orbit(3, 20.0, 24, "orthographic").rays())
    found: list[March] = [
        marcher.march(origins, directions, occupancy, RADIUS, box, 128)
        for marcher in (TorchMarcher(), NerfaccMarcher())
    ]
    torch.testing.assert_close(found[1].edges, found[0].edges)
    # nerfacc takes a step that only touches an occupied cell, torch one whose middle is in it
    assert float((found[0].occupied != found[1].occupied).float().mean()) < 0.02
