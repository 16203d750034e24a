import math

import pytest
import torch
from torch import Tensor

from nova3d.cameras import orbit
from nova3d.fusion.rays import March, TorchMarcher
from nova3d.fusion.rendering import composite, gather_rays, sample_weights, section_alpha, section_weights
from nova3d.fusion.occupancy import grid_points, lookup, sample_rays

RADIUS = 0.35


def test_alpha_and_weights_match_a_scalar_loop():
    sdf = torch.linspace(0.1, -0.1, 12).repeat(2, 1) + 0.02 * torch.randn(
        2, 12, generator=torch.Generator().manual_seed(0)
    )
    weights = section_weights(section_alpha(sdf, 40.0))
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
    assert gather_rays(values, ray, 4).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    assert gather_rays(values[:, 0], ray, 3).tolist() == [3, 0, 6]


def sphere_cache(n: int = 48) -> Tensor:
    return (grid_points(n, 0.6).norm(dim=-1) - RADIUS).reshape(n, n, n)


def marched(origins: Tensor, directions: Tensor, steps: int = 128) -> March:
    """Through a box that is occupied everywhere."""
    box = torch.tensor([[-0.4] * 3, [0.4] * 3])
    return TorchMarcher().march(origins, directions, torch.ones(8, 8, 8, dtype=torch.bool), 0.6, box, steps)


def test_lookup_reads_x_fastest():
    values = grid_points(5, 1.0)[:, 0].reshape(5, 5, 5)
    torch.testing.assert_close(lookup(values, torch.tensor([[0.3, -0.9, 0.7]]), 1.0), torch.tensor([0.3]))


@pytest.mark.parametrize("model", ["orthographic", "perspective"])
def test_a_sphere_renders_right_through_either_lens(model):
    cameras = orbit(3, 20.0, 24, model, radius=2.0)
    origins, directions = (r.reshape(-1, 3) for r in cameras.rays())
    t = sample_rays(origins, directions, marched(origins, directions), sphere_cache(), 0.6, 24, 400.0, None)
    assert bool((t[:, 1:] >= t[:, :-1] - 1e-6).all())
    x = origins[:, None] + t[..., None] * directions[:, None]
    weights = sample_weights(x.norm(dim=-1) - RADIUS, 2000.0)
    normals = torch.nn.functional.normalize(x, dim=-1).reshape(-1, 3)
    _, normal, opacity = composite(weights, torch.arange(weights.numel()), torch.zeros_like(normals), normals)
    nearest = (origins * directions).sum(-1)
    gap = (origins - nearest[:, None] * directions).norm(dim=-1)  # of the ray from the centre
    inside, outside = gap < RADIUS - 0.03, gap > RADIUS + 0.03
    assert bool(inside.any())
    assert opacity[inside].min() > 0.99
    assert opacity[outside].max() < 0.01
    hit = -nearest - (RADIUS**2 - gap**2).clamp_min(0).sqrt()
    depth = (weights * t).sum(-1) / opacity.clamp_min(1e-6)
    assert (depth - hit)[inside].abs().max() < 0.02
    assert (depth - hit)[inside].abs().mean() < 0.003
    true = (origins + hit[:, None] * directions) / RADIUS
    cosine = torch.nn.functional.cosine_similarity(normal, true, dim=-1)[inside]
    assert cosine.clamp(-1, 1).acos().mean() < math.radians(1)


def test_samples_stay_within_occupied_steps():
    origins, directions = torch.tensor([[0.0, 0, 2]]), torch.tensor([[0.0, 0, -1]])
    march = marched(origins, directions)
    middles = (march.edges[:, 1:] + march.edges[:, :-1]) / 2
    back = March(march.edges, (middles > 2.2) & (middles < 2.5))  # the sphere's far side, at 2.35
    t = sample_rays(origins, directions, back, sphere_cache(), 0.6, 16, 400.0, torch.Generator().manual_seed(0))
    assert float(t.min()) > 2.18
    assert float(t.max()) < 2.52
    assert float((t - 2.35).abs().min()) < 0.02


def test_stratified_samples_are_seeded_and_one_per_stratum():
    origins, directions = torch.tensor([[0.1, 0, 2]]), torch.tensor([[0.0, 0, -1]])
    march = marched(origins, directions)

    def draw(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return sample_rays(origins, directions, march, sphere_cache(), 0.6, 12, 100.0, generator)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    middle = draw(None)[0]
    assert bool((draw(0)[0][2:] > middle[:-2]).all())
    assert bool((draw(0)[0][:-2] < middle[2:]).all())


def test_rays_that_miss_everything_stay_finite():
    origins, directions = torch.tensor([[0.9, 0.9, 2.0]]), torch.tensor([[0.0, 0, -1]])
    march = marched(origins, directions)
    assert not bool(march.occupied.any())
    t = sample_rays(origins, directions, march, sphere_cache(), 0.6, 8, 100.0, None)
    assert torch.isfinite(t).all()
    assert bool((t[:, 1:] >= t[:, :-1]).all())
