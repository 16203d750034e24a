import importlib
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.fusion.occupancy import Hull
from nova3d.fusion.rays import (
    NerfaccMarcher,
    RayIntervals,
    TorchMarcher,
    accumulate,
    alpha_from_sdf,
    composite,
    importance_sample,
    pick_marcher,
    ray_aabb_intersect,
    render_weights,
    sample_weights,
    trilinear,
)
from nova3d.hull import grid_points

RADIUS, STEPS = 0.6, 40
BALL = 0.35  # radius of a sphere
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
    box, occupancy = hull.bounds(margin), hull.occupancy(margin)
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
    near, far = ray_aabb_intersect(origins, torch.tensor([[0.0, 0, -1]]).expand(4, 3), box)
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
    box, occupancy = hull.bounds(0.02).cuda(), hull.occupancy(0.02).cuda()
    origins, directions = (rays.reshape(-1, 3).cuda() for rays in orbit(3, 20.0, 24, "orthographic").rays())
    found: list[RayIntervals] = [
        marcher.march(origins, directions, occupancy, RADIUS, box, 128)
        for marcher in (TorchMarcher(), NerfaccMarcher())
    ]
    torch.testing.assert_close(found[1].edges, found[0].edges)
    # nerfacc takes a step that only touches an occupied cell, torch one whose middle is in it
    assert float((found[0].occupied != found[1].occupied).float().mean()) < 0.02


def test_alpha_and_weights_match_a_scalar_loop():
    sdf = torch.linspace(0.1, -0.1, 12).repeat(2, 1) + 0.02 * torch.randn(
        2, 12, generator=torch.Generator().manual_seed(0)
    )
    weights = render_weights(alpha_from_sdf(sdf, 40.0))
    for ray in range(2):
        transmittance = 1.0
        phi = [1 / (1 + math.exp(-40 * s)) for s in sdf[ray].tolist()]
        for i in range(11):
            alpha = max((phi[i] - phi[i + 1]) / phi[i], 0.0)
            assert abs(float(weights[ray, i]) - transmittance * alpha) < 1e-5
            transmittance *= 1 - alpha


def test_weights_of_a_solid_sum_to_one_and_of_air_to_zero():
    solid = torch.linspace(0.3, -0.3, 20)[None]
    assert abs(float(sample_weights(solid, 300.0).sum()) - 1) < 1e-4
    air = torch.linspace(0.3, 0.2, 20)[None]
    assert float(sample_weights(air, 300.0).sum()) < 1e-4
    deep = torch.full((1, 5), -50.0)  # Phi underflows: still finite
    assert torch.isfinite(sample_weights(deep, 300.0)).all()


def test_a_sections_weight_goes_to_the_end_nearer_the_surface():
    weights = sample_weights(torch.tensor([[0.3, -0.1]]), 300.0)
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75]]), atol=1e-4, rtol=0)


def scalar_composite(weights: Tensor, colour: Tensor, normal: Tensor) -> tuple[list[float], list[float], float]:
    rgb, n, total = [0.0] * 3, [0.0] * 3, 0.0
    for sample in range(len(weights)):
        w = float(weights[sample])
        total += w
        for c in range(3):
            rgb[c] += w * float(colour[sample, c])
            n[c] += w * float(normal[sample, c])
    return [c + 1 - total for c in rgb], n, total


def random_rays() -> tuple[Tensor, Tensor, Tensor]:
    """Weights [6,10] that add up to less than one, colours and normals [60,3]."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(6, 10, generator=generator) ** 8
    weights = weights / weights.sum(dim=1, keepdim=True) * torch.rand(6, 1, generator=generator)
    return weights, torch.rand(60, 3, generator=generator), torch.randn(60, 3, generator=generator)


def test_composite_of_all_samples_equals_a_scalar_loop():
    weights, colour, normal = random_rays()
    rgb, n, opacity = composite(weights, torch.arange(60), colour, normal)
    for ray in range(6):
        expected = scalar_composite(weights[ray], colour.view(6, 10, 3)[ray], normal.view(6, 10, 3)[ray])
        torch.testing.assert_close(rgb[ray], torch.tensor(expected[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(n[ray], torch.tensor(expected[1]), atol=1e-5, rtol=0)
        assert float(opacity[ray]) == pytest.approx(expected[2], abs=1e-6)


def test_kept_samples_tend_to_all_of_them():
    weights, colour, normal = random_rays()
    full = composite(weights, torch.arange(60), colour, normal)
    errors = []
    for least in (1e-1, 1e-2, 1e-3, 1e-4):
        kept = torch.nonzero(weights.flatten() > least)[:, 0]
        rgb, n, opacity = composite(weights, kept, colour[kept], normal[kept])
        torch.testing.assert_close(opacity, full[2])  # it needs no colour
        errors.append(float((rgb - full[0]).abs().max() + (n - full[1]).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05 > 1e-3 > errors[-1]


def test_what_is_left_out_counts_as_the_kept_do():
    weights = torch.tensor([[0.4, 0.2, 0.2]])
    red = torch.tensor([[1.0, 0, 0]])
    rgb, normal, opacity = composite(weights, torch.tensor([0]), red, red)
    torch.testing.assert_close(rgb, torch.tensor([[1.0, 0.2, 0.2]]))  # 0.8 of red on white
    torch.testing.assert_close(normal, torch.tensor([[0.4, 0, 0]]))
    torch.testing.assert_close(opacity, torch.tensor([0.8]))


def test_nothing_kept_is_finite_with_its_gradients():
    weights = torch.tensor([[1e-5, 0.0], [0.3, 0.2]], requires_grad=True)
    none = torch.zeros(0, 3, requires_grad=True)
    rgb, normal, opacity = composite(weights, torch.zeros(0, dtype=torch.long), none, none)
    assert torch.equal(normal, torch.zeros(2, 3))
    torch.testing.assert_close(rgb, (1 - opacity)[:, None].expand(2, 3))
    (rgb.sum() + normal.sum() + opacity.sum()).backward()
    assert torch.isfinite(weights.grad).all()


def test_rays_gather_their_samples():
    values, ray = torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([2, 0, 2])
    assert accumulate(values, ray, 4).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    assert accumulate(values[:, 0], ray, 3).tolist() == [3, 0, 6]


def sphere_cache(n: int = 48) -> Tensor:
    return (grid_points(n, 0.6).norm(dim=-1) - BALL).reshape(n, n, n)


def marched(origins: Tensor, directions: Tensor, steps: int = 128) -> RayIntervals:
    """Through a box that is occupied everywhere."""
    box = torch.tensor([[-0.4] * 3, [0.4] * 3])
    return TorchMarcher().march(origins, directions, torch.ones(8, 8, 8, dtype=torch.bool), 0.6, box, steps)


def test_lookup_reads_x_fastest():
    values = grid_points(5, 1.0)[:, 0].reshape(5, 5, 5)
    torch.testing.assert_close(trilinear(values, torch.tensor([[0.3, -0.9, 0.7]]), 1.0), torch.tensor([0.3]))


@pytest.mark.parametrize("model", ["orthographic", "perspective"])
def test_a_sphere_renders_right_through_either_lens(model):
    cameras = orbit(3, 20.0, 24, model, radius=2.0)
    origins, directions = (r.reshape(-1, 3) for r in cameras.rays())
    t = importance_sample(origins, directions, marched(origins, directions), sphere_cache(), 0.6, 24, 400.0, None)
    assert bool((t[:, 1:] >= t[:, :-1] - 1e-6).all())
    x = origins[:, None] + t[..., None] * directions[:, None]
    weights = sample_weights(x.norm(dim=-1) - BALL, 2000.0)
    normals = torch.nn.functional.normalize(x, dim=-1).reshape(-1, 3)
    _, normal, opacity = composite(weights, torch.arange(weights.numel()), torch.zeros_like(normals), normals)
    nearest = (origins * directions).sum(-1)
    gap = (origins - nearest[:, None] * directions).norm(dim=-1)  # of the ray from the centre
    inside, outside = gap < BALL - 0.03, gap > BALL + 0.03
    assert bool(inside.any())
    assert opacity[inside].min() > 0.99
    assert opacity[outside].max() < 0.01
    hit = -nearest - (BALL**2 - gap**2).clamp_min(0).sqrt()
    depth = (weights * t).sum(-1) / opacity.clamp_min(1e-6)
    assert (depth - hit)[inside].abs().max() < 0.02
    assert (depth - hit)[inside].abs().mean() < 0.003
    true = (origins + hit[:, None] * directions) / BALL
    cosine = torch.nn.functional.cosine_similarity(normal, true, dim=-1)[inside]
    assert cosine.clamp(-1, 1).acos().mean() < math.radians(1)


def test_samples_stay_within_occupied_steps():
    origins, directions = torch.tensor([[0.0, 0, 2]]), torch.tensor([[0.0, 0, -1]])
    march = marched(origins, directions)
    middles = (march.edges[:, 1:] + march.edges[:, :-1]) / 2
    back = RayIntervals(march.edges, (middles > 2.2) & (middles < 2.5))  # the sphere's far side, at 2.35
    t = importance_sample(origins, directions, back, sphere_cache(), 0.6, 16, 400.0, torch.Generator().manual_seed(0))
    assert float(t.min()) > 2.18
    assert float(t.max()) < 2.52
    assert float((t - 2.35).abs().min()) < 0.02


def test_stratified_samples_are_seeded_and_one_per_stratum():
    origins, directions = torch.tensor([[0.1, 0, 2]]), torch.tensor([[0.0, 0, -1]])
    march = marched(origins, directions)

    def draw(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return importance_sample(origins, directions, march, sphere_cache(), 0.6, 12, 100.0, generator)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    middle = draw(None)[0]
    assert bool((draw(0)[0][2:] > middle[:-2]).all())
    assert bool((draw(0)[0][:-2] < middle[2:]).all())


def test_rays_that_miss_everything_stay_finite():
    origins, directions = torch.tensor([[0.9, 0.9, 2.0]]), torch.tensor([[0.0, 0, -1]])
    march = marched(origins, directions)
    assert not bool(march.occupied.any())
    t = importance_sample(origins, directions, march, sphere_cache(), 0.6, 8, 100.0, None)
    assert torch.isfinite(t).all()
    assert bool((t[:, 1:] >= t[:, :-1]).all())
