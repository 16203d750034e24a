import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nova3d.fusion import losses, optimize
from nova3d.fusion.optimize import fit
from nova3d.fusion.rays import TorchMarcher

TERMS = ("colour", "normal", "mask", "eikonal", "sparse", "smooth")


@pytest.fixture(scope="module")
def fitted(shapes, f_views):
    """A short fit, with the occupancy and the cached SDF as of its end."""
    config = shapes.short_config(optim={"steps": 40}, hull={"fit_steps": 60})
    state = fit(f_views, config)
    hull, margin = state.hull, state.margin
    occupancy, box, cached_sdf = hull.occupancy(margin), hull.bounds(margin), state.evaluate_grid()
    return replace(state, occupancy=occupancy, box=box, cached_sdf=cached_sdf, marcher=TorchMarcher())


@pytest.fixture
def batch(fitted, monkeypatch):
    """Call with config sections={"key": value}; returns the terms and what eq. 5 was given. early: before H counts."""
    real = losses.colour_loss

    def run(progress: float = 0.5, early: bool = False, move: bool = False, trusted=(), first_solid=False, **sections):
        config = copy.deepcopy(fitted.config)
        for section, values in sections.items():
            setattr(config, section, replace(getattr(config, section), **values))
        views = replace(fitted.views, trusted=tuple(v in trusted for v in range(8)))
        state = replace(fitted, config=config, views=views)
        if first_solid:
            state = replace(state, outline_view=0, margin=1e-3)
        state.conflict.detach = config.conflict.detach
        state.poses.config = config.pose
        seen = SimpleNamespace(state=state)

        def colour_loss(residual: Tensor, h: Tensor, penalty: float, weight: Tensor) -> Tensor:
            seen.residual, seen.conflict, seen.weight = residual, h, weight
            return real(residual, h, penalty, weight)

        monkeypatch.setattr(losses, "colour_loss", colour_loss)
        rays = state.pixels.draw(200, torch.Generator().manual_seed(1))
        context = optimize.StepContext(progress, not early, move, 0.3, torch.Generator().manual_seed(0))
        rays = optimize.refine_rays(state, rays, context)
        rendering = optimize.render(state, rays, context)
        residual = losses.colour_residual(rendering.rgb, rays.rgb)
        seen.view, seen.on_object = rays.view, residual.detach()[rays.mask > 0.5].mean()
        seen.terms = optimize.loss_terms(state, rays, rendering, residual, context)
        seen.numbers = {name: float(term.detach()) for name, term in seen.terms.items()}
        return seen

    return run


def gradient(total: Tensor, module: torch.nn.Module) -> float:
    found = torch.autograd.grad(total, list(module.parameters()), retain_graph=True, allow_unused=True)
    return sum(float(g.abs().sum()) for g in found if g is not None)


@pytest.mark.parametrize("mode", ["mlp", "closed_form", "trimmed", "none"])
def test_terms_are_finite_and_train_what_they_should(batch, mode):
    found = batch(conflict={"mode": mode}, move=True)
    assert set(found.numbers) == {*TERMS, "pose"}
    assert all(0 <= value < 10 for value in found.numbers.values())
    assert 0 < float(found.on_object) < 1
    total = torch.stack(list(found.terms.values())).sum()
    for name, module in found.state.modules().items():
        assert (gradient(total, module) > 0) == (name != "conflict" or mode == "mlp"), name


def test_each_term_is_weighted_by_its_schedule(batch):
    plain = batch(loss=dict.fromkeys(TERMS, 1.0)).numbers
    for name in TERMS:
        other = batch(progress=0.4, loss=dict.fromkeys(TERMS, 1.0) | {name: [0.2, 1.0, 3.0, 0.6]}).numbers
        expected = plain | {name: 2 * plain[name]}
        assert other == pytest.approx(expected, rel=1e-5)


def test_with_a_trusted_outline_the_field_is_held_near_the_first_solid(batch):
    assert "solid" not in batch().terms
    found = batch(first_solid=True, loss={"solid": 3.0})
    assert 0 < found.numbers["solid"] < 1
    assert batch(first_solid=True, loss={"solid": 6.0}).numbers["solid"] == pytest.approx(2 * found.numbers["solid"])
    trained = {name for name, module in found.state.modules().items() if gradient(found.terms["solid"], module) > 0}
    assert trained == {"sdf"}


def test_trusted_views_count_more_among_others_only(batch):
    found = batch(trusted=(0, 3), loss={"input_view": 3.0})
    trusted_rays = (found.view == 0) | (found.view == 3)
    assert torch.equal(found.weight, torch.where(trusted_rays, 3.0, 1.0))
    assert bool(trusted_rays.any())
    for alike in ((), range(8)):
        assert torch.equal(batch(trusted=alike, loss={"input_view": 3.0}).weight, torch.ones(200))
        moving = batch(trusted=alike, loss={"input_view": 3.0}, move=True)
        assert torch.equal(moving.weight, torch.where(moving.view == 0, 3.0, 1.0))  # it anchors the poses


@pytest.mark.parametrize("mode", ["mlp", "closed_form", "trimmed"])
def test_what_is_trusted_among_others_contradicts_nothing(batch, mode):
    plain, found = (batch(trusted=trusted, conflict={"mode": mode, "trim": 0.5}) for trusted in ((), (2,)))
    trusted_rays = found.view == 2
    assert float(found.conflict.detach()[trusted_rays].abs().max()) == 0
    assert torch.equal(found.conflict[~trusted_rays], plain.conflict[~trusted_rays])
    assert torch.equal(found.weight[trusted_rays], torch.full_like(found.weight[trusted_rays], 2.0))  # none is trimmed
    assert bool((plain.weight[trusted_rays] == 0).any()) == (mode == "trimmed")


def test_poses_that_stand_still_are_not_trained(batch):
    still = batch(move=False)
    assert "pose" not in still.terms
    assert gradient(torch.stack(list(still.terms.values())).sum(), still.state.poses) == 0
    assert gradient(batch(move=True).terms["colour"], still.state.poses) > 0


def test_normals_turn_with_the_poses_only_where_asked(batch):
    stay, follow = (batch(move=True, pose={"normals_follow": follow}) for follow in (False, True))
    assert gradient(stay.terms["normal"], stay.state.poses) != gradient(follow.terms["normal"], follow.state.poses)


def test_kept_samples_stand_for_all_of_them(batch):
    full = batch(sampling={"min_weight": -1.0}).numbers
    gaps = []
    for least in (1e-1, 1e-2, 1e-4):
        numbers = batch(sampling={"min_weight": least}).numbers
        gaps.append(sum(abs(numbers[name] - full[name]) for name in ("colour", "normal")))
        assert numbers["mask"] == pytest.approx(full["mask"], rel=1e-5)
        assert numbers["smooth"] == pytest.approx(full["smooth"], rel=1e-5)
    assert gaps[0] > gaps[2]
    assert gaps[2] < 1e-3


def test_no_kept_sample_at_all_is_finite(batch):
    found = batch(sampling={"min_weight": 2.0}, move=True)
    assert all(0 <= value < 10 for value in found.numbers.values())
    assert float(found.conflict.detach().abs().max()) == 0
    assert found.numbers["normal"] == pytest.approx(1.0)  # no normal agrees with none
    total = torch.stack(list(found.terms.values())).sum()
    for module in found.state.modules().values():
        for g in torch.autograd.grad(total, list(module.parameters()), retain_graph=True, allow_unused=True):
            assert g is None or bool(torch.isfinite(g).all())


@pytest.mark.parametrize("mode", ["mlp", "closed_form", "trimmed", "none"])
def test_before_its_start_there_is_no_conflict(batch, mode):
    found, early = (batch(conflict={"mode": mode}, early=early) for early in (False, True))
    assert float(early.conflict.detach().abs().max()) == 0
    assert torch.equal(early.weight, torch.ones(200))
    assert (float(found.conflict.detach().max()) > 0) == (mode in ("mlp", "closed_form"))


def test_closed_form_takes_h_from_the_residual_and_does_not_train_it(batch):
    found = batch(conflict={"mode": "closed_form"})
    torch.testing.assert_close(found.conflict, (found.residual.detach() / 0.6).clamp(0, 1))
    assert not found.conflict.requires_grad


def test_trimmed_leaves_out_the_share_with_the_largest_residuals(batch):
    found = batch(conflict={"mode": "trimmed", "trim": 0.25})
    out, residual = found.weight == 0, found.residual.detach()
    assert int(out.sum()) == 50
    assert residual[out].min() > residual[~out].max()
    expected = (residual * found.weight).sum() / found.weight.sum()
    assert found.numbers["colour"] == pytest.approx(float(expected), rel=1e-5)


def test_without_conflict_the_term_is_the_mean_residual(batch):
    found = batch(conflict={"mode": "none"})
    expected = (found.residual * found.weight).sum() / found.weight.sum()
    assert found.numbers["colour"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_detached_conflict_cannot_thin_out_the_surface(batch):
    for detach in (True, False):
        found = batch(conflict={"mode": "mlp", "detach": detach})
        h = found.conflict.sum()
        assert gradient(h, found.state.conflict) > 0
        for module in (found.state.sdf, found.state.colour, found.state.sharpness):
            assert (gradient(h, module) == 0) == detach


def test_colour_bends_the_surface_through_the_weights_alone(batch, fitted, monkeypatch):
    """The colour network is asked once, and the normals it is given carry no gradient."""
    asked = []
    kind = type(fitted.colour)
    real = kind.forward

    def forward(self, x: Tensor, normal: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(normal.requires_grad)
        return real(self, x, normal, features)

    monkeypatch.setattr(kind, "forward", forward)
    batch()
    assert asked == [False]


def test_every_seed_of_the_config_s_range_is_one(shapes, f_views):
    assert fit(f_views, shapes.short_config(optim={"seed": 2**63 - 1, "steps": 2})).step == 2
