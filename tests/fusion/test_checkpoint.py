"""What a fit survives: interruption, foreign files, divergence and a short time."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nova3d.errors import InputError
from nova3d.fusion import optimize, reconstruct
from nova3d.fusion.checkpoint import Snapshot
from nova3d.fusion.optimize import DivergedError, fit
from nova3d.fusion.state import FusionState, initial_state
from nova3d.utils.progress import Progress


class StoppedError(Exception):
    pass


def stop_at(step: int) -> Progress:
    """A progress callback that ends the run when this step is told of (one of ten is)."""

    def progress(done: int, total: int, stage: str) -> None:
        if f"step {step}/" in stage:
            raise StoppedError

    return progress


def small(shapes, steps: int = 31, **sections):
    config = shapes.short_config(**sections)
    config.optim.steps, config.sampling.rays = steps, 48
    return config


@pytest.fixture
def saving(monkeypatch) -> None:
    """Save at every opportunity, not every few seconds."""
    monkeypatch.setattr(optimize, "_SAVE_SECONDS", -1.0)


@pytest.fixture(scope="module")
def saved(shapes, f_views, tmp_path_factory) -> Path:
    """The file of a run of 31 steps that ended after 21."""
    path = tmp_path_factory.mktemp("saved") / "deep" / "fit.pt"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(optimize, "_SAVE_SECONDS", -1.0)
        fit(f_views, small(shapes), stop_at(21), path)
    assert [file.name for file in path.parent.iterdir()] == ["fit.pt"]  # no half-written one beside it
    return path


@pytest.fixture(scope="module")
def whole(shapes, f_views) -> FusionState:
    """The same run of 31 steps without an interruption."""
    return fit(f_views, small(shapes))


@pytest.fixture
def interrupted(saved, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(saved, tmp_path / "fit.pt"))


def weights(state: FusionState) -> dict[str, torch.Tensor]:
    return {f"{n}.{key}": value for n, m in state.modules().items() for key, value in m.state_dict().items()}


def same(first: FusionState, second: FusionState) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resumed_fit_equals_the_uninterrupted_one(shapes, f_views, interrupted, whole):
    resumed = fit(f_views, small(shapes), checkpoint=interrupted)
    assert [e["loss"] for e in resumed.history] == [e["loss"] for e in whole.history]
    assert same(whole, resumed)


def test_a_resumed_fit_goes_on_where_it_was(shapes, f_views, interrupted, caplog):
    caplog.set_level(logging.INFO, "nova3d.fusion")
    told: list[str] = []
    state = fit(f_views, small(shapes), lambda done, total, stage: told.append(stage), interrupted)
    assert f"going on from step 21 of '{interrupted}'" in caplog.messages
    assert [text.split("/")[0] for text in told] == ["fitting, step 31"]
    assert [entry["step"] for entry in state.history] == [0, 10, 20, 30]
    assert state.step == 31


def test_a_fit_resumed_when_the_scene_is_read_anew_is_bitwise_the_same(shapes, f_views, tmp_path, saving):
    """With the cache read at every step, poses at rest and all levels open, nothing of the run is outside the file."""
    sections = {"hull": {"refresh": 1, "fit_steps": 20}, "pose": {"enabled": False}}
    config = small(shapes, 21, encoding={"start_levels": 5.0}, **sections)
    whole = fit(f_views, config)
    path = tmp_path / "fit.pt"
    with pytest.raises(StoppedError):
        fit(f_views, config, stop_at(11), path)
    resumed = fit(f_views, config, checkpoint=path)
    assert [e["loss"] for e in resumed.history] == [e["loss"] for e in whole.history]
    assert same(whole, resumed)


def other_colour(views):
    rgb = views.rgb.clone()
    rgb[2, 20, 20, 0] -= 0.01
    return replace(views, rgb=rgb)


def turned(views):
    c2w = views.cameras.c2w.clone()
    c2w[3, 0, 3] += 1e-3
    return replace(views, cameras=replace(views.cameras, c2w=c2w))


def trusted(views):
    return replace(views, trusted=(True, *[False] * (len(views) - 1)))


@pytest.mark.parametrize(
    ("change", "spoil", "message"),
    [
        ({"optim": {"lr_mlp": 2e-3}}, None, "is of another config: starting anew"),
        ({"encoding": {"levels": 4}}, None, "is of another config: starting anew"),
        ({}, other_colour, "is of another set of views: starting anew"),
        ({}, turned, "is of another set of views: starting anew"),
        ({}, trusted, "is of another set of views: starting anew"),
    ],
)
def test_a_checkpoint_of_another_run_is_not_used(shapes, f_views, interrupted, caplog, change, spoil, message):
    views, config = spoil(f_views) if spoil else f_views, small(shapes)
    for section, values in change.items():
        setattr(config, section, replace(getattr(config, section), **values))
    state = fit(views, config, checkpoint=interrupted)
    assert [entry["step"] for entry in state.history] == [0, 10, 20, 30]
    assert f"'{interrupted}' {message}" in caplog.messages


@pytest.mark.parametrize(
    "broken", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not a checkpoint"]
)
def test_a_broken_checkpoint_is_not_used(shapes, f_views, interrupted, caplog, broken):
    interrupted.write_bytes(broken(interrupted.read_bytes()))
    state = fit(f_views, small(shapes), checkpoint=interrupted)
    assert [entry["step"] for entry in state.history] == [0, 10, 20, 30]
    (warning,) = [text for text in caplog.messages if str(interrupted) in text]
    assert warning.startswith(f"'{interrupted}' cannot be read (")
    assert warning.endswith("): starting anew")
    assert "\n" not in warning


def test_a_checkpoint_of_an_earlier_release_is_loaded(shapes, f_views, interrupted, whole):
    """Its parameter groups lack names, and its counters have others."""
    content = torch.load(interrupted, weights_only=True)
    for name, earlier in (("mean_residual", "residual"), ("rate_scale", "rate"), ("restarts", "falls")):
        content[earlier] = content.pop(name)
    for group in content["tensors"]["optimizer"]["param_groups"]:
        for key in ("name", "initial_lr", "final_lr", "stop"):
            del group[key]
    torch.save(content, interrupted)
    resumed = fit(f_views, small(shapes), checkpoint=interrupted)
    assert same(whole, resumed)
    assert [group["name"] for group in resumed.optimizer.param_groups] == [
        "grid",
        "networks",
        "sharpness",
        "poses",
        "conflict",
    ]


def test_what_follows_the_fit_may_change_between_runs(shapes, f_views, interrupted, caplog):
    caplog.set_level(logging.INFO, "nova3d.fusion")
    config = small(shapes, extract={"resolution": 48}, texture={"size": 64}, optim={"time_budget": 1000.0})
    fit(f_views, config, checkpoint=interrupted)
    assert f"going on from step 21 of '{interrupted}'" in caplog.messages


def test_a_place_that_cannot_be_written_is_one_line(shapes, f_views, tmp_path, saving):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot save the fit to '.*fit\.pt'"):
        fit(f_views, small(shapes), checkpoint=tmp_path / "file" / "fit.pt")


def test_reconstruct_resumes_and_removes_the_file(shapes, f_views, interrupted, caplog):
    caplog.set_level(logging.INFO, "nova3d.fusion")
    result = reconstruct(f_views, small(shapes), checkpoint=interrupted)
    assert "going on from step 21" in caplog.text
    assert len(result.mesh.faces) > 0
    assert not interrupted.exists()


@pytest.fixture
def nan_at(monkeypatch):
    """Call with the numbers of the calls of `loss_terms`, from 1, whose loss is not a number; counts the calls."""
    real, calls = optimize.loss_terms, [0]

    def set_up(bad: Callable[[int], bool]) -> list[int]:
        def terms(*arguments):
            calls[0] += 1
            found = real(*arguments)
            return found | {"colour": found["colour"] * float("nan")} if bad(calls[0]) else found

        monkeypatch.setattr(optimize, "loss_terms", terms)
        return calls

    return set_up


def test_a_diverged_fit_goes_on_from_its_last_good_state_with_half_the_rates(
    shapes, f_views, nan_at, monkeypatch, caplog
):
    rates: list[tuple[int, float]] = []
    real = optimize.set_learning_rates

    def set_rates(state: FusionState, progress: float) -> None:
        real(state, progress)
        rates.append((state.step, state.optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(optimize, "set_learning_rates", set_rates)
    calls = nan_at(lambda call: call == 61)
    state = fit(f_views, small(shapes, 71))
    assert "the fit diverged at step 61: going on from step 51 with half the rates" in caplog.messages
    assert calls[0] == 71 + 10
    before, after = (dict(part) for part in (rates[:61], rates[61:]))
    for step in range(51, 61):
        assert after[step] == pytest.approx(before[step] / 2)
    assert [entry["step"] for entry in state.history] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert all(torch.isfinite(value).all() for value in weights(state).values())


def test_a_fall_is_survived_wherever_it_begins(shapes, f_views, nan_at, caplog):
    nan_at(lambda call: call == 74)  # the cache is read at step 75, the loss at step 80
    state = fit(f_views, small(shapes, 91))
    assert state.history[-1]["step"] == 90


def test_a_fit_that_keeps_diverging_fails_with_its_checkpoint_kept(shapes, f_views, nan_at, tmp_path, caplog):
    path = tmp_path / "fit.pt"
    nan_at(lambda call: call > 55)
    with pytest.raises(DivergedError) as failed:
        fit(f_views, small(shapes, 81), checkpoint=path)
    assert isinstance(failed.value, InputError)
    assert str(failed.value) == (
        "the fit diverged at step 61: lower optim.lr_grid or encoding.finest "
        f"(with a lower optim.lr_grid the fit goes on from step 51, kept in '{path}')"
    )
    assert sum("half the rates" in text for text in caplog.messages) == 2
    kept = torch.load(path, weights_only=True)
    assert kept["step"] == 51
    assert all(torch.isfinite(value).all() for value in kept["tensors"]["sdf"].values())


def test_a_diverged_fit_goes_on_with_the_lower_rate_that_its_message_advises(shapes, f_views, nan_at, tmp_path, caplog):
    path, failing = tmp_path / "fit.pt", [True]
    nan_at(lambda call: failing[0] and call > 55)
    with pytest.raises(DivergedError):
        fit(f_views, small(shapes, 61), checkpoint=path)
    failing[0] = False
    caplog.set_level(logging.INFO, "nova3d.fusion")
    for views, sections, said in [
        (other_colour(f_views), {}, "is of another set of views: starting anew"),
        (f_views, {"encoding": {"finest": 32}}, "is of another config: starting anew"),
    ]:
        config = small(shapes, 61, **sections)
        assert not Snapshot.load(path, initial_state(views, config))
        assert f"'{path}' {said}" in caplog.messages
    state = fit(f_views, small(shapes, 61, optim={"lr_grid": 1e-3}), checkpoint=path)
    assert f"going on from step 51 of '{path}'" in caplog.messages
    assert state.step == 61 and state.optimizer.param_groups[0]["initial_lr"] == 1e-3


def test_poses_that_are_not_numbers_do_not_end_the_process(shapes, f_views):
    """A diverged pose sends points nowhere: the grid must not read outside its table for them."""
    state = fit(f_views, small(shapes, 1))
    query = state.sdf.query(torch.full((600, 3), float("nan")))
    query.gradient().sum().backward()
    assert bool(query.sdf.isnan().all())


def test_a_time_budget_ends_the_fit_early_with_a_mesh(shapes, f_views, caplog):
    config = small(shapes, 100_000, optim={"time_budget": 2.0})
    result = reconstruct(f_views, config)
    assert len(result.mesh.faces) > 0
    assert result.history[-1]["step"] < 10_000
    (warning,) = [text for text in caplog.messages if "time budget" in text]
    assert "of 100000 steps" in warning
    assert result.timings["fit"] < 20


def nan_pixel(views):
    rgb = views.rgb.clone()
    rgb[5, 3, 3, 1] = float("nan")
    return replace(views, rgb=rgb)


def one_picture(views):
    parts = (part[:1].expand_as(part).clone() for part in (views.rgb, views.normals, views.mask))
    return replace(views, **dict(zip(("rgb", "normals", "mask"), parts, strict=True)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nan_pixel, r"rgb of views .*5.* holds numbers that are not finite"),
        (lambda views: views[:1], "one view does not tell a shape"),
        (one_picture, "all 8 views are one and the same picture"),
    ],
)
def test_views_that_cannot_be_fused_are_refused_in_one_line(shapes, f_views, spoil, words):
    with pytest.raises(InputError, match=words) as refused:
        reconstruct(spoil(f_views), shapes.short_config())
    assert "\n" not in str(refused.value)
