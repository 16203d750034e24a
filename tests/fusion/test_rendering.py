import math

import torch

from nova3d.cameras import orbit
from nova3d.fusion.config import SamplingConfig
from nova3d.fusion.rendering import composite, sample_weights, section_alpha, section_weights
from nova3d.fusion.sampling import box_interval, grid_points, lookup, sample_rays

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


def test_composite_shows_white_behind_and_detaches_conflict():
    weights = torch.tensor([[0.25, 0.25]], requires_grad=True)
    colour, normal = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    conflict = torch.ones(1, 2)
    rendered = composite(weights, colour, normal, conflict)
    torch.testing.assert_close(rendered.colour, torch.full((1, 3), 0.5))
    assert float(rendered.conflict) == 0.5
    assert not rendered.conflict.requires_grad
    assert composite(weights, colour, normal, conflict, detach=False).conflict.requires_grad
    assert float(composite(weights, colour, normal, None).conflict) == 0


def sphere_cache(n: int = 48) -> torch.Tensor:
    return (grid_points(n, 0.6).norm(dim=-1) - RADIUS).reshape(n, n, n)


def test_lookup_reads_x_fastest():
    values = grid_points(5, 1.0)[:, 0].reshape(5, 5, 5)
    torch.testing.assert_close(lookup(values, torch.tensor([[0.3, -0.9, 0.7]]), 1.0), torch.tensor([0.3]))


def test_a_sphere_renders_right_through_either_lens():
    for model in ("orthographic", "perspective"):
        cameras = orbit(3, 20.0, 24, model, radius=2.0)
        origins, directions = (r.reshape(-1, 3) for r in cameras.rays())
        box = torch.tensor([[-0.4] * 3, [0.4] * 3])
        t = sample_rays(origins, directions, sphere_cache(), box, 0.6, SamplingConfig(samples=24), 400.0, None)
        assert bool((t[:, 1:] >= t[:, :-1] - 1e-6).all())
        x = origins[:, None] + t[..., None] * directions[:, None]
        weights = sample_weights(x.norm(dim=-1) - RADIUS, 2000.0)
        normal = torch.nn.functional.normalize(x, dim=-1)
        rendered = composite(weights, torch.zeros_like(x), normal, None)
        nearest = (origins * directions).sum(-1)
        gap = (origins - nearest[:, None] * directions).norm(dim=-1)  # of the ray from the centre
        inside, outside = gap < RADIUS - 0.03, gap > RADIUS + 0.03
        assert bool(inside.any())
        assert rendered.opacity[inside].min() > 0.99
        assert rendered.opacity[outside].max() < 0.01
        hit = -nearest - (RADIUS**2 - gap**2).clamp_min(0).sqrt()
        depth = (weights * t).sum(-1) / rendered.opacity.clamp_min(1e-6)
        assert (depth - hit)[inside].abs().max() < 0.02
        assert (depth - hit)[inside].abs().mean() < 0.003
        true = (origins + hit[:, None] * directions) / RADIUS
        cosine = torch.nn.functional.cosine_similarity(rendered.normal, true, dim=-1)[inside]
        assert cosine.clamp(-1, 1).acos().mean() < math.radians(1)


def test_rays_that_miss_the_box_stay_finite():
    near, far = box_interval(
        torch.tensor([[5.0, 5, 5]]), torch.tensor([[0.0, 0, 1]]), torch.tensor([[-1.0] * 3, [1.0] * 3])
    )
    assert bool(far >= near)
    origins, directions = torch.tensor([[0.9, 0.9, 2.0]]), torch.tensor([[0.0, 0, -1]])
    box = torch.tensor([[-0.4] * 3, [0.4] * 3])
    t = sample_rays(origins, directions, sphere_cache(), box, 0.6, SamplingConfig(samples=8), 100.0, None)
    assert torch.isfinite(t).all()
