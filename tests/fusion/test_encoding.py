import pytest
import torch

from nova3d.fusion.encoding import HashGrid, level_weights


def grid(**changes) -> HashGrid:
    settings = {"levels": 4, "features": 2, "log2_table": 9, "base": 4, "finest": 24, "init": 1.0} | changes
    return HashGrid(**settings, generator=torch.Generator().manual_seed(0)).double()


def reference(encoding: HashGrid, point: list[float], level: int) -> torch.Tensor:
    """One point, one level, corner by corner with Python integers: the layout as written in the docstring."""
    scale = float(encoding.scales[level])
    resolution, size = encoding.resolutions[level], int(encoding.sizes[level, 0])
    position = [c * scale + 0.5 for c in point]
    cell = [int(p) for p in position]
    total = torch.zeros(encoding.features, dtype=torch.float64)
    for corner in range(8):
        bits = [(corner >> axis) & 1 for axis in range(3)]
        x, y, z = (c + b for c, b in zip(cell, bits, strict=True))
        weight = 1.0
        for p, c, b in zip(position, cell, bits, strict=True):
            weight *= (p - c) if b else 1 - (p - c)
        if resolution**3 <= 512:
            index = x + y * resolution + z * resolution**2
        else:
            index = x ^ (y * 2654435761 & 0xFFFFFFFF) ^ (z * 805459861 & 0xFFFFFFFF)
        total += weight * encoding.table[:, int(encoding.offsets[level, 0]) + index % size].detach()
    return total


def test_features_match_a_scalar_reference_on_dense_and_hashed_levels():
    encoding = grid()
    assert 0 < encoding.dense_levels < encoding.levels
    points = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    features = encoding.interpolate(encoding.gather(points))
    for row, point in enumerate(points.tolist()):
        expected = torch.cat([reference(encoding, point, level) for level in range(4)])
        torch.testing.assert_close(features[row], expected, rtol=1e-5, atol=1e-6)


def test_pull_back_is_the_gradient_from_autograd():
    encoding = grid()
    points = torch.rand(50, 3, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(50, encoding.width, dtype=torch.float64)
    corners = encoding.gather(points)
    (expected,) = torch.autograd.grad((encoding.interpolate(corners) * cotangent).sum(), points, retain_graph=True)
    torch.testing.assert_close(encoding.pull_back(corners, cotangent), expected)


def test_pull_back_trains_table_cotangent_and_position():
    encoding = grid(levels=2, base=3, finest=5, log2_table=6)
    points = torch.rand(3, 3, dtype=torch.float64) * 0.01 + 0.31  # within one cell of every level
    cotangent = torch.randn(3, encoding.width, dtype=torch.float64)

    def gradient(table, p, c):
        encoding.table.data = table
        corners = encoding.gather(p)
        values = table.index_select(
            1, encoding._index((p.T[:, None] * encoding.scales[:, None] + 0.5).long(), 2).flatten()
        )
        corners = type(corners)(values.view_as(corners.values), corners.position)
        return encoding.pull_back(corners, c)

    inputs = (encoding.table.detach().clone(), points, cotangent)
    assert torch.autograd.gradcheck(gradient, tuple(t.requires_grad_() for t in inputs), atol=1e-6)


def test_fewer_levels_are_the_first_ones():
    encoding = grid()
    points = torch.rand(5, 3, dtype=torch.float64)
    torch.testing.assert_close(
        encoding.interpolate(encoding.gather(points, 2)), encoding.interpolate(encoding.gather(points))[:, :4]
    )


@pytest.mark.parametrize(("open_levels", "expected"), [(2.0, [1, 1, 0, 0]), (2.25, [1, 1, 0.25, 0]), (9, [1, 1, 1, 1])])
def test_level_weights(open_levels, expected):
    assert level_weights(4, open_levels).tolist() == expected
