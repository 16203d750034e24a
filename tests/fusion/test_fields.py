import torch

from nova3d.fusion.config import ConflictConfig, EncodingConfig, FieldConfig
from nova3d.fusion.conflict import ConflictField, penalty
from nova3d.fusion.fields import ColourField, SDFField


def field(init: float = 1e-4) -> SDFField:
    encoding = EncodingConfig(levels=4, log2_table=10, base=4, init=init)
    return SDFField(encoding, FieldConfig(hidden=64), 24, torch.Generator().manual_seed(0))


def test_starts_as_a_sphere():
    x = torch.randn(500, 3) * 0.2
    sample = field()(x)
    expected = x.norm(dim=-1) - 0.3  # half the box's half side
    assert (sample.sdf - expected).abs().mean() < 0.05
    outward = torch.nn.functional.cosine_similarity(sample.gradient, x, dim=-1)
    assert outward[x.norm(dim=-1) > 0.1].mean() > 0.9


def test_gradient_is_exact():
    sdf = field(init=0.5).double()
    sdf.open_levels = 2.5
    x = ((torch.rand(200, 3, dtype=torch.float64) - 0.5) * 1.1).requires_grad_()
    (expected,) = torch.autograd.grad(sdf.sdf(x).sum(), x)
    torch.testing.assert_close(sdf(x).gradient, expected, rtol=1e-9, atol=1e-9)
    step = 1e-6
    x = x.detach()
    for axis in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[axis] = step
        central = (sdf.sdf(x + shift) - sdf.sdf(x - shift)) / (2 * step)
        close = (central - expected[:, axis]).abs() < 1e-4 * (1 + expected[:, axis].abs())
        assert close.float().mean() > 0.99  # a point next to a cell's face may step over it


def test_closed_levels_do_not_matter():
    sdf = field(init=0.5)
    sdf.open_levels = 2.0
    x = (torch.rand(20, 3) - 0.5) * 1.1
    before = sdf(x).sdf
    with torch.no_grad():
        sdf.grid.table[:, int(sdf.grid.offsets[2, 0]) :] += 1.0
    torch.testing.assert_close(sdf(x).sdf, before, rtol=0, atol=0)
    sdf.open_levels = 3.0
    assert not torch.allclose(sdf(x).sdf, before)


def test_colour_is_in_range():
    colour = ColourField(13, 32, torch.Generator().manual_seed(0))
    rgb, hidden = colour(torch.randn(10, 3), torch.randn(10, 3), torch.randn(10, 13))
    assert rgb.shape == (10, 3)
    assert hidden.shape == (10, 32)
    assert bool(((rgb >= 0) & (rgb <= 1)).all())


def conflict_inputs() -> tuple[torch.Tensor, ...]:
    f_c, f_g, d, x = (torch.randn(30, n, requires_grad=True) for n in (16, 13, 3, 3))
    return f_c, f_g, d, torch.arange(30) % 4, x


def test_conflict_starts_low_and_detaches_its_inputs():
    inputs = conflict_inputs()
    for detach in (True, False):
        config = ConflictConfig(detach=detach)
        h = ConflictField(16, 13, 4, config, torch.Generator().manual_seed(0))(*inputs)
        assert 0 < h.mean() < 0.05
        if detach:
            h.sum().backward()
            assert all(inputs[i].grad is None for i in (0, 1, 2, 4))
        else:
            assert all(g.abs().sum() > 0 for g in torch.autograd.grad(h.sum(), [inputs[i] for i in (0, 1, 2, 4)]))


def test_penalty_is_annealed():
    config = ConflictConfig(start=0.25, lambda_start=1.0, lambda_end=0.25)
    assert penalty(0.0, config) == penalty(0.25, config) == 1.0
    assert abs(penalty(1.0, config) - 0.25) < 1e-9
    assert abs(penalty(0.625, config) - 0.5) < 1e-9
