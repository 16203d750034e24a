import math

import pytest
import torch
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion.config import EncodingConfig, FieldConfig
from nova3d.fusion.fields import ColourField, SDFField, Sharpness


def field(init: float = 1e-4, backend: str = "torch", normals: str = "analytic", beta: float = 100.0) -> SDFField:
    encoding = EncodingConfig(levels=4, log2_table=10, base=4, init=init)
    config = FieldConfig(hidden=64, normals=normals, beta=beta)
    return SDFField(encoding, config, 24, torch.Generator().manual_seed(0), backend)


def inside(count: int, seed: int = 1) -> Tensor:
    """Points [n,3] of the box of half side 0.6, in double."""
    return (torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5) * 1.1


def test_starts_as_a_sphere():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    sample = field()(x)
    expected = x.norm(dim=-1) - 0.3  # half the box's half side
    assert (sample.sdf - expected).abs().mean() < 0.05
    outward = torch.nn.functional.cosine_similarity(sample.gradient, x, dim=-1)
    assert outward[x.norm(dim=-1) > 0.1].mean() > 0.9
    assert float(sample.gradient.detach().norm(dim=-1).mean()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_gradient_is_exact(backend):
    if backend == "numba":
        pytest.importorskip("numba")
    sdf = field(init=0.5, backend=backend).double()
    sdf.open_levels = 2.5
    x = inside(200).requires_grad_()
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


def test_one_query_says_what_separate_ones_say():
    sdf, x = field(init=0.5).double(), inside(30)
    query = sdf.query(x)
    torch.testing.assert_close(query.sdf, sdf.sdf(x))
    assert query.features.shape == (30, 13)
    torch.testing.assert_close(query.features[:, 0] * 0.6, query.sdf)


@pytest.mark.parametrize("normals", ["analytic", "tetrahedral"])
def test_gradient_at_some_rows_is_that_part_of_the_whole(normals):
    sdf, x = field(init=0.5, normals=normals).double(), inside(40)
    query, rows = sdf.query(x), torch.tensor([39, 0, 7, 7])
    torch.testing.assert_close(query.gradient(rows), query.gradient()[rows], rtol=0, atol=1e-12)
    assert query.gradient(torch.zeros(0, dtype=torch.long)).shape == (0, 3)


def test_gradient_trains_every_parameter_as_autograd_would():
    sdf, x = field(init=0.5).double(), inside(30).requires_grad_()
    target = inside(30, seed=2)
    (along,) = torch.autograd.grad(sdf.sdf(x).sum(), x, create_graph=True)
    expected = torch.autograd.grad((along - target).square().sum(), list(sdf.parameters()), allow_unused=True)
    found = torch.autograd.grad(
        (sdf.query(x).gradient() - target).square().sum(), list(sdf.parameters()), allow_unused=True
    )
    for name, ours, theirs in zip(dict(sdf.named_parameters()), found, expected, strict=True):
        if name == "bias_out":
            assert ours is None  # a constant has no slope
        else:
            # torch's softplus drops exp(-20), which its second derivative multiplies by beta
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_tetrahedral_differences_err_by_h_times_the_mixed_derivative():
    """(1 / 4h) sum_k k f(x + h k) = grad f + h (f_yz, f_xz, f_xy) + O(h^2), by Taylor's expansion."""
    errors = []
    for base in (257, 513):
        encoding = EncodingConfig(levels=1, log2_table=10, base=base, init=0.0)
        config = FieldConfig(hidden=64, normals="tetrahedral", beta=4.0)
        sdf = SDFField(encoding, config, base, torch.Generator().manual_seed(0)).double()
        x = (inside(100) * 0.9).requires_grad_()
        (exact,) = torch.autograd.grad(sdf.sdf(x).sum(), x, create_graph=True)
        hessian = torch.stack([torch.autograd.grad(exact[:, a].sum(), x, retain_graph=True)[0] for a in range(3)], 1)
        mixed = torch.stack([hessian[:, 1, 2], hessian[:, 0, 2], hessian[:, 0, 1]], dim=-1)
        h = 1.2 / (base - 1) / math.sqrt(3)
        error = (sdf(x).gradient - exact).detach()
        assert float(error.abs().max()) > 0
        errors.append((float(error.norm()), float((error - h * mixed).norm())))
    assert errors[0][0] / errors[1][0] == pytest.approx(2, rel=0.05)
    assert errors[0][1] / errors[1][1] == pytest.approx(4, rel=0.1)


def test_tetrahedral_steps_are_as_long_as_a_cell_of_the_finest_open_level():
    sdf, x = field(init=0.0, normals="tetrahedral", beta=4.0).double(), inside(100) * 0.9
    exact = field(init=0.0, beta=4.0).double()(x).gradient
    errors = []
    for levels in (1.0, 1.5, 2.0, 4.0):
        sdf.open_levels = levels
        errors.append(float((sdf(x).gradient - exact).norm().detach()))
    assert errors[1] == errors[2]  # an opening level is open
    assert errors[0] > 1.5 * errors[2] > 3 * errors[3]


def test_normals_of_another_name_are_refused():
    with pytest.raises(InputError, match=r"field\.normals 'finite' is none of analytic, tetrahedral"):
        field(normals="finite")


def test_closed_levels_do_not_matter():
    sdf, x = field(init=0.5), inside(20).float()
    sdf.open_levels = 2.0
    before = sdf(x)
    with torch.no_grad():
        sdf.grid.table[sdf.grid.layout.offsets[2] * 2 :] += 1.0
    for after, earlier in zip(sdf(x), before, strict=True):
        torch.testing.assert_close(after, earlier, rtol=0, atol=0)
    sdf.open_levels = 3.0
    assert not torch.allclose(sdf(x).sdf, before.sdf)


def test_outside_the_box_the_border_goes_on():
    sdf = field(init=0.5)
    out, border = torch.tensor([[0.9, 0.1, -2.0]]), torch.tensor([[0.6, 0.1, -0.6]])
    torch.testing.assert_close(sdf(out).sdf, sdf(border).sdf)


def test_colour_is_in_range():
    colour = ColourField(13, 32, torch.Generator().manual_seed(0))
    rgb, hidden = colour(torch.randn(10, 3), torch.randn(10, 3), torch.randn(10, 13))
    assert rgb.shape == (10, 3)
    assert hidden.shape == (10, 32)
    assert bool(((rgb >= 0) & (rgb <= 1)).all())


def test_sharpness_is_an_exponential_within_bounds():
    sharpness = Sharpness(60.0)
    assert sharpness.item() == pytest.approx(60)
    with torch.no_grad():
        sharpness.value += 0.1
    assert sharpness.item() == pytest.approx(60 * math.e, rel=1e-4)
    for value, bound in ((-1.0, 1.0), (5.0, 1e4)):
        sharpness.value.data.fill_(value)
        assert sharpness.item() == bound
