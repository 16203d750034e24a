import importlib
import logging
import math

import pytest
import torch
from torch import Tensor

from nova3d.errors import InputError
from nova3d.fusion.encoding import GridLayout, HashGrid, make_grid, pick_backend
from nova3d.fusion.fields import level_weights

LAYOUT = GridLayout.plan(levels=4, features=2, log2_table=9, base=4, finest=24)  # two dense levels, two hashed ones
WIDTH = LAYOUT.levels * LAYOUT.features


@pytest.fixture(params=["torch", "numba"])
def backend(request) -> str:
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


def grid(backend: str = "torch", layout: GridLayout = LAYOUT) -> HashGrid:
    """In double, with entries in +-1."""
    return make_grid(layout, 1.0, backend, torch.Generator().manual_seed(0)).double()


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(encoding: HashGrid, point: list[float], level: int) -> Tensor:
    """One point, one level, corner by corner with Python integers: the layout as written in the module's docstring."""
    layout = encoding.layout
    scale, resolution, size = layout.scales[level], layout.resolutions[level], layout.sizes[level]
    position = [c * scale + 0.5 for c in point]
    cell = [int(p) for p in position]
    table = encoding.table.detach().view(-1, layout.features)
    total = torch.zeros(layout.features, dtype=torch.float64)
    for corner in range(8):
        bits = [(corner >> axis) & 1 for axis in range(3)]
        x, y, z = (c + b for c, b in zip(cell, bits, strict=True))
        weight = 1.0
        for p, c, b in zip(position, cell, bits, strict=True):
            weight *= (p - c) if b else 1 - (p - c)
        if resolution**3 <= 1 << layout.log2_table:
            index = x + y * resolution + z * resolution**2
        else:
            index = x ^ (y * 2654435761 & 0xFFFFFFFF) ^ (z * 805459861 & 0xFFFFFFFF)
        total += weight * table[sum(layout.sizes[:level]) + index % size]
    return total


def test_features_match_a_scalar_reference_on_dense_and_hashed_levels(backend):
    encoding = grid(backend)
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 1], [0.5, 1, 0]], dtype=torch.float64)
    points = torch.cat([uniform(20, 3), corners])
    features = encoding(points, LAYOUT.levels).features
    for row, point in enumerate(points.tolist()):
        expected = torch.cat([reference(encoding, point, level) for level in range(4)])
        torch.testing.assert_close(features[row], expected, rtol=0, atol=1e-12)


def test_any_number_of_features_per_level(backend):
    encoding = grid(backend, GridLayout.plan(levels=2, features=3, log2_table=9, base=4, finest=12))
    (point,) = uniform(1, 3).tolist()
    expected = torch.cat([reference(encoding, point, level) for level in range(2)])
    features = encoding(torch.tensor([point], dtype=torch.float64), 2).features
    torch.testing.assert_close(features[0], expected, rtol=0, atol=1e-12)


def test_pull_back_is_the_gradient_from_autograd(backend):
    encoding = grid(backend)
    points, cotangent = uniform(50, 3).requires_grad_(), uniform(50, WIDTH, seed=2) - 0.5
    query = encoding(points, LAYOUT.levels)
    (expected,) = torch.autograd.grad((query.features * cotangent).sum(), points, retain_graph=True)
    torch.testing.assert_close(query.pull_back(cotangent), expected, rtol=0, atol=1e-10)
    rows = torch.tensor([7, 3, 3, 49])
    torch.testing.assert_close(query.pull_back(cotangent[rows], rows), expected[rows], rtol=0, atol=1e-10)


def test_pull_back_trains_table_cotangent_and_position(backend):
    encoding = grid(backend, GridLayout.plan(levels=2, features=2, log2_table=6, base=3, finest=5))
    points = uniform(3, 3) * 0.01 + 0.31  # within one cell of every level
    cotangent = uniform(3, 4, seed=2)

    def gradient(table: Tensor, p: Tensor, c: Tensor) -> Tensor:
        return torch.func.functional_call(encoding, {"table": table}, (p, 2)).pull_back(c)

    inputs = tuple(t.requires_grad_() for t in (encoding.table.detach().clone(), points, cotangent))
    assert torch.autograd.gradcheck(gradient, inputs, atol=1e-6)


def everything(backend: str, points: Tensor, rows: Tensor | None) -> list[Tensor]:
    """Features, pulled back cotangents, and the gradients of both in the table, the cotangents and the points."""
    encoding = grid(backend)
    x = points.clone().requires_grad_()
    count = len(points) if rows is None else len(rows)
    cotangent = (uniform(count, WIDTH, seed=3) - 0.5).requires_grad_()
    query = encoding(x, LAYOUT.levels)
    pulled = query.pull_back(cotangent, rows)
    total = (query.features * uniform(len(points), WIDTH, seed=4)).sum() + (pulled * uniform(count, 3, seed=5)).sum()
    return [query.features.detach(), pulled.detach(), *torch.autograd.grad(total, [encoding.table, cotangent, x])]


@pytest.mark.parametrize("rows", [None, torch.tensor([5, 0, 5, 63])])
def test_numba_equals_torch_with_all_its_gradients(rows):
    pytest.importorskip("numba")
    points = uniform(64, 3)
    for ours, theirs in zip(everything("numba", points, rows), everything("torch", points, rows), strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_results_do_not_depend_on_the_number_of_threads(backend):
    points = uniform(2100, 3)  # enough for several threads to be given a part
    torch.set_num_threads(1)
    alone = everything(backend, points, None)
    torch.set_num_threads(3)
    for one, several in zip(alone, everything(backend, points, None), strict=True):
        torch.testing.assert_close(one, several, rtol=0, atol=0)


def test_no_points_at_all(backend):
    encoding = grid(backend)
    query = encoding(torch.zeros(0, 3, dtype=torch.float64), LAYOUT.levels)
    assert query.features.shape == (0, 8)
    assert query.pull_back(torch.zeros(0, 8, dtype=torch.float64)).shape == (0, 3)


def test_fewer_levels_are_the_first_ones(backend):
    encoding, points = grid(backend), uniform(5, 3)
    torch.testing.assert_close(encoding(points, 2).features, encoding(points, LAYOUT.levels).features[:, :4])


@pytest.mark.parametrize(
    ("levels", "base", "finest"), [(10, 16, 256), (16, 16, 512), (8, 16, 128), (5, 16, 48), (2, 3, 5)]
)
def test_layout_grows_from_base_to_exactly_the_finest(levels, base, finest):
    layout = GridLayout.plan(levels, 2, 15, base, finest)
    assert layout.levels == levels
    assert (layout.resolutions[0], layout.resolutions[-1]) == (base, finest)
    ratios = [(b + 1) / (a + 1) for a, b in zip(layout.scales, layout.scales[1:], strict=False)]
    assert all(math.isclose(ratio, layout.growth, rel_tol=1e-4) for ratio in ratios)
    # no scale is so near to a whole number that float32's rounding could change its resolution
    assert all(abs(scale - round(scale)) > 1e-4 for scale in layout.scales[1:])


def test_layout_sizes_offsets_and_what_is_dense():
    layout = GridLayout.plan(levels=4, features=2, log2_table=9, base=5, finest=24)
    assert layout.resolutions[:2] == (5, 9)
    assert layout.sizes == (128, 512, 512, 512)  # 125 rounded up to a multiple of 8, then the table's limit
    assert layout.offsets == (0, 128, 640, 1152)
    assert layout.entries == 1664
    assert layout.dense == (True, False, False, False)
    assert LAYOUT.dense == (True, True, False, False)  # 8^3 = 2^9 just fits
    assert HashGrid(layout).table.shape == (1664 * 2,)


def test_table_starts_uniform_and_seeded():
    layout = GridLayout.plan(levels=4, features=2, log2_table=12, base=4, finest=24)
    first, again, other = (HashGrid(layout, 0.5, torch.Generator().manual_seed(s)).table for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.49 < float(first.detach().abs().max()) <= 0.5
    assert abs(float(first.detach().std()) - 0.5 / math.sqrt(3)) < 0.01


@pytest.mark.parametrize(("open_levels", "expected"), [(2.0, [1, 1, 0, 0]), (2.25, [1, 1, 0.25, 0]), (9, [1, 1, 1, 1])])
def test_level_weights(open_levels, expected):
    assert level_weights(4, open_levels).tolist() == expected


@pytest.fixture
def libraries(monkeypatch):
    """Call with {backend: what importing its module raises, or None}; other modules are imported as they are."""

    def set_up(faults: dict[str, Exception | None]) -> None:
        real = importlib.import_module

        def imported(name: str, *rest: str | None) -> object:
            backend = name.removeprefix("nova3d.fusion.encoding_")
            if backend not in faults:
                return real(name, *rest)
            if fault := faults[backend]:
                raise fault
            return object()

        monkeypatch.setattr(importlib, "import_module", imported)

    return set_up


@pytest.mark.parametrize(
    ("device", "fault", "expected", "reason"),
    [
        ("cpu", None, "numba", ""),
        ("cpu", ModuleNotFoundError("No module named 'numba'", name="numba"), "torch", "numba is not installed"),
        ("cpu", ImportError("numba needs NumPy 2.1"), "torch", "numba needs NumPy 2.1"),
        ("cpu", RuntimeError("cannot cache function"), "torch", "cannot cache function"),
        ("cuda", None, "tcnn", ""),
        ("cuda:1", ModuleNotFoundError("", name="tinycudann"), "torch", "tinycudann is not installed"),
        ("cuda", OSError("unknown compute capability"), "torch", "unknown compute capability"),
        ("mps", None, "torch", ""),
    ],
)
def test_auto_takes_the_fastest_that_works_and_says_why(libraries, caplog, device, fault, expected, reason):
    libraries({"numba": fault, "tcnn": fault})
    caplog.set_level(logging.INFO, "nova3d.fusion.encoding")
    assert pick_backend("auto", torch.device(device)) == expected
    assert caplog.messages == [f"grid backend: {expected}" + (f" ({reason})" if reason else "")]


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("cuda", "cpu", "'cuda' is none of auto, torch, numba, tcnn"),
        ("tcnn", "cpu", "'tcnn' does not run on cpu: use auto or torch"),
        ("numba", "cuda", "'numba' does not run on cuda: use auto or torch"),
        ("numba", "cpu", "'numba': numba is not installed; use auto or torch"),
        ("tcnn", "cuda", "'tcnn': no GPU; use auto or torch"),
    ],
)
def test_a_named_backend_that_cannot_work_is_refused(libraries, name, device, message):
    libraries({"numba": ModuleNotFoundError("", name="numba"), "tcnn": OSError("no GPU")})
    with pytest.raises(InputError) as refused:
        pick_backend(name, device)
    assert str(refused.value) == f"encoding.backend {message}"


def test_a_named_backend_that_works_is_taken(libraries):
    libraries({"numba": None, "tcnn": None})
    assert pick_backend("torch", "cuda") == pick_backend("torch", "cpu") == "torch"
    assert pick_backend("numba", "cpu") == "numba"
    assert pick_backend("tcnn", "cuda:0") == "tcnn"


@pytest.mark.gpu
def test_tcnn_equals_torch():
    pytest.importorskip("tinycudann")
    points = uniform(4096, 3).float().cuda().requires_grad_()
    cotangent, rows = uniform(100, LAYOUT.levels * 2, seed=2).float().cuda(), torch.arange(0, 4000, 40).cuda()
    found = []
    for backend in ("tcnn", "torch"):
        encoding = make_grid(LAYOUT, 1.0, backend, torch.Generator().manual_seed(0)).cuda()
        query = encoding(points, LAYOUT.levels)
        pulled = query.pull_back(cotangent, rows)
        gradients = torch.autograd.grad(query.features.sum() + pulled.square().sum(), encoding.table)
        found.append([query.features.detach(), pulled.detach(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
