import pytest
import torch

from nova3d.fusion import losses


def test_colour_loss_is_the_papers():
    rendered, target = torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[0.5, 0.1, 0.2]])
    residual = losses.colour_residual(rendered, target)
    value = losses.colour_loss(residual, torch.tensor([0.25]), 0.3, torch.ones(1))
    torch.testing.assert_close(value, torch.tensor(0.75 * 0.5 + 0.3 * 0.0625), rtol=1e-4, atol=1e-5)


def test_residual_is_a_norm_with_a_gradient_at_zero():
    torch.testing.assert_close(
        losses.colour_residual(torch.tensor([[0.3, 0.4, 0.0]]), torch.zeros(1, 3)), torch.tensor([0.5])
    )
    same = torch.zeros(1, 3, requires_grad=True)
    value = losses.colour_residual(same, torch.zeros(1, 3))
    value.backward()
    assert value.item() < 2e-3
    assert torch.equal(same.grad, torch.zeros(1, 3))


def test_colour_loss_is_a_weighted_mean():
    residual, conflict = torch.tensor([0.1, 0.5]), torch.tensor([0.0, 0.5])
    value = losses.colour_loss(residual, conflict, 0.4, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(value, torch.tensor((2 * 0.1 + 0.5 * 0.5 + 0.4 * 0.25) / 3))


def test_conflict_scales_the_colour_gradient_and_lambda_never_reaches_it():
    target = torch.zeros(1, 3)
    gradients = []
    for h, lambda_0 in ((0.0, 0.3), (0.75, 0.3), (0.75, 3.0)):
        rendered = torch.tensor([[0.3, 0.4, 0.0]], requires_grad=True)
        losses.colour_loss(
            losses.colour_residual(rendered, target), torch.tensor([h]), lambda_0, torch.ones(1)
        ).backward()
        gradients.append(rendered.grad)
    torch.testing.assert_close(gradients[1], 0.25 * gradients[0])
    torch.testing.assert_close(gradients[2], gradients[1])


def test_normal_loss_leaves_out_what_is_seen_at_less_than_a_tenth():
    cosine = torch.tensor([-0.5, -0.11, -0.09, 0.0, 0.05])
    directions = torch.stack([(1 - cosine**2).sqrt(), 0 * cosine, cosine], dim=-1)
    target = torch.tensor([[0.0, 0, 1]]).expand(5, 3)
    rendered = torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    value = losses.normal_loss(rendered, target, directions, torch.ones(5, dtype=torch.bool), torch.ones(5))
    torch.testing.assert_close(value, (cosine[1].abs().exp() / cosine[:2].abs().exp().sum()))


def test_normal_loss_counts_only_facing_foreground():
    directions = torch.tensor([[0.0, 0, -1]] * 3)
    target = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, 1]])  # facing, turned away, background
    rendered = torch.tensor([[0.0, 0, 0.7], [0, 0, 1], [0, 1, 0]])
    foreground = torch.tensor([True, True, False])
    assert float(losses.normal_loss(rendered, target, directions, foreground, torch.ones(3))) < 1e-6
    wrong = torch.tensor([[0.0, 1, 0]] * 3)
    one = losses.normal_loss(wrong, target, directions, foreground, torch.ones(3))
    torch.testing.assert_close(one, torch.tensor(1.0))
    # more background in the batch leaves the term as it is
    again = losses.normal_loss(*(t.repeat(4, 1) for t in (wrong, target, directions)),
                               torch.tensor([True] + [False] * 11), torch.ones(12))  # fmt: skip
    torch.testing.assert_close(again, one)


def test_normal_loss_favours_frontal_rays_and_trims_the_worst():
    directions = torch.tensor([[0.0, 0, -1]] * 2)
    target = torch.nn.functional.normalize(torch.tensor([[0.0, 0, 1], [0, 1, 0.3]]), dim=-1)
    wrong_first = torch.stack([torch.tensor([1.0, 0, 0]), target[1]])
    wrong_second = torch.stack([target[0], torch.tensor([1.0, 0, 0])])
    foreground, ones = torch.ones(2, dtype=torch.bool), torch.ones(2)
    first, second = (losses.normal_loss(w, target, directions, foreground, ones) for w in (wrong_first, wrong_second))
    assert first > second
    assert float(losses.normal_loss(wrong_first, target, directions, foreground, ones, keep=0.5)) < 1e-6


def test_regularisers_on_known_values():
    unit = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    assert float(losses.eikonal_loss(unit)) < 1e-10
    torch.testing.assert_close(losses.eikonal_loss(3 * unit), torch.tensor(4.0))
    torch.testing.assert_close(losses.sparse_loss(torch.tensor([0.0, 1.0]), 100.0), torch.tensor(0.5))
    torch.testing.assert_close(losses.smooth_loss(unit, unit + 0.1), torch.tensor(0.3))
    torch.testing.assert_close(
        losses.mask_loss(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0]), torch.ones(2)), torch.tensor(0.125)
    )
    strays = losses.solid_loss(torch.tensor([0.5, -0.3, 0.1]), torch.tensor([0.1, 0.0, 0.0]), 0.1)
    torch.testing.assert_close(strays, torch.tensor((0.3 + 0.2 + 0.0) / 3))


def test_nothing_to_look_at_gives_finite_zeros():
    none, flags = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.bool)
    values = [
        losses.colour_loss(losses.colour_residual(none, none), none[:, 0], 1.0, none[:, 0]),
        losses.normal_loss(none, none, none, flags, none[:, 0], 0.9),
        losses.mask_loss(none[:, 0], none[:, 0], none[:, 0]),
        losses.eikonal_loss(none),
        losses.sparse_loss(none[:, 0], 100.0),
        losses.smooth_loss(none, none),
        losses.solid_loss(none[:, 0], none[:, 0], 0.01),
    ]
    assert [v.item() for v in values] == [0.0] * 7
    background = torch.zeros(4, 3, requires_grad=True)
    loss = losses.normal_loss(background, background, background, torch.zeros(4, dtype=torch.bool), torch.ones(4), 0.9)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(background.grad).all()


def test_gradients_against_finite_differences():
    generator = torch.Generator().manual_seed(0)
    a, b, d = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    h, w = torch.rand(6, generator=generator, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    b, d = torch.nn.functional.normalize(b, dim=-1), torch.nn.functional.normalize(d, dim=-1)
    fg = torch.ones(6, dtype=torch.bool)
    check = torch.autograd.gradcheck
    inputs = (a.requires_grad_(), h.requires_grad_())
    assert check(lambda a, h: losses.colour_loss(losses.colour_residual(a, b), h, 0.3, w), inputs)
    assert check(lambda a: losses.normal_loss(a, b, -b + 0.1 * d, fg, w), (a,))
    assert check(losses.eikonal_loss, (a,))


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (0.2, 1.0), (0.3, 1.5), (0.4, 2.0), (0.6, 3.0), (0.9, 3.0), (1.0, 3.0)]
)
def test_a_schedule_is_linear_between_its_ends(progress, expected):
    assert losses.weight_at([0.2, 1, 3, 0.6], progress) == pytest.approx(expected)


def test_a_number_stays():
    for progress in (0.0, 0.5, 1.0):
        assert losses.weight_at(0.25, progress) == 0.25
    assert isinstance(losses.weight_at(1, 0.5), float)


def test_a_schedule_may_fall():
    assert losses.weight_at([0.0, 1.0, 0.0, 1.0], 0.75) == pytest.approx(0.25)
