"""Filters: each fault trips its own code and no other, and honest objects pass."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nova3d import cameras
from nova3d.cameras import Cameras
from nova3d.data.filters import (
    FilterConfig,
    apply_filters,
    check_config,
    colour_spread,
    normals_agreement,
    worst_measure,
)
from nova3d.errors import InputError
from nova3d.rendering.engine import Rendered
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.raster import rasterize
from nova3d.rendering.reasons import Reason

OBJECTS = sorted((Path(__file__).parents[2] / "assets" / "objects").glob("*.glb"))
FACTS = {"opacity": 1.0, "overexposed": 0.0, "missing_textures": 0}


def ball(rig: Cameras, radius: float = 0.4) -> Rendered:
    """A ball with two-coloured stripes, drawn by its formula: exact colours, normals and depth."""
    origins, directions = rig.rays()
    along = -(origins * directions).sum(-1)
    square = along**2 - origins.square().sum(-1) + radius**2
    distance = along - square.clamp_min(0).sqrt()
    hit = square > 0
    normals = (origins + distance[..., None] * directions) / radius * hit[..., None]
    forward = -rig.c2w[:, None, None, :3, 2]
    depth = distance * (directions * forward).sum(-1) * hit
    striped = (normals[..., 1] * 6).floor() % 2
    colours = torch.stack([0.9 - 0.5 * striped, 0.2 + 0.4 * striped, torch.full_like(striped, 0.3)], dim=-1)
    return Rendered(torch.cat([colours * hit[..., None], hit[..., None].float()], -1), normals, depth, dict(FACTS))


@pytest.fixture(params=["ortho8", "persp8"])
def rig(request: pytest.FixtureRequest) -> Cameras:
    return cameras.preset(request.param, 64)


def codes(rendered: Rendered, rig: Cameras, config: FilterConfig | None = None) -> list[Reason]:
    return apply_filters(rendered, rig, config or FilterConfig()).tags


def shown(rendered: Rendered, keep: Tensor) -> Rendered:
    """Only the pixels in `keep` [v,h,w]."""
    kept = keep.float()
    return Rendered(
        rendered.rgba * kept[..., None],
        rendered.normals * kept[..., None],
        rendered.depth * kept,
        rendered.facts,
    )


def test_a_good_object_passes(rig: Cameras) -> None:
    findings = apply_filters(ball(rig), rig, FilterConfig())
    assert findings.tags == [] and findings.reject is None and findings.message == ""
    assert findings.measures["normals_agree"] == 1 and findings.measures["thin"] > 0.99
    assert all(type(value) is float for value in findings.measures.values())


def test_blank_renders(rig: Cameras) -> None:
    good = ball(rig)
    nothing = shown(good, torch.zeros(8, 64, 64))
    assert apply_filters(nothing, rig, FilterConfig()).reject is Reason.BLANK_RENDER
    some = torch.ones(8, 64, 64)
    some[:3] = 0  # more than a quarter of the views
    assert apply_filters(shown(good, some), rig, FilterConfig()).reject is Reason.BLANK_RENDER
    some[:] = 1
    some[:2] = 0
    assert codes(shown(good, some), rig) == [Reason.THIN]
    dark = replace(good, rgba=good.rgba * torch.tensor([0.005, 0.005, 0.005, 1.0]))
    findings = apply_filters(dark, rig, FilterConfig())
    assert findings.reject is Reason.BLANK_RENDER and "brightest" in findings.message
    broken = replace(good, rgba=good.rgba * torch.tensor([torch.nan, 1, 1, 1]))
    assert Reason.BLANK_RENDER in codes(broken, rig)  # not a number is never fit


def test_small_thin_and_clipped_objects() -> None:
    rig = cameras.preset("ortho8", 64)
    assert codes(ball(rig, 0.1), rig) == [Reason.TINY_COVERAGE]
    one = torch.arange(8)[:, None, None, None] == 5
    clipped = ball(rig, 0.8)
    small = ball(rig, 0.5)
    mixed = Rendered(
        torch.where(one, clipped.rgba, small.rgba),
        torch.where(one, clipped.normals, small.normals),
        torch.where(one[..., 0], clipped.depth, small.depth),
        dict(FACTS),
    )
    assert codes(small, rig) == [] and codes(mixed, rig) == [Reason.CLIPPED] == codes(clipped, rig)
    card = torch.ones(8, 64, 64)
    card[2, :, :31] = card[2, :, 33:] = 0  # edge-on in one view
    assert codes(shown(ball(rig), card), rig) == []
    card[2, :, 32] = card[2, :26] = card[2, 40:] = 0
    assert codes(shown(ball(rig), card), rig) == [Reason.THIN]


def test_faults_that_the_engine_reports(rig: Cameras) -> None:
    good = ball(rig)
    for fact, value, code in (
        ("opacity", 0.7, Reason.TRANSPARENT),
        ("overexposed", 0.2, Reason.EMISSIVE),
        ("missing_textures", 1, Reason.MISSING_TEXTURE),
        ("missing_textures", ["wood.png"], Reason.MISSING_TEXTURE),
    ):
        assert codes(replace(good, facts=FACTS | {fact: value}), rig) == [code]
    assert codes(replace(good, facts={}), rig) == []  # nothing reported, nothing judged


def test_surfaces_without_normals_are_transparent(rig: Cameras) -> None:
    good = ball(rig)
    holes = replace(good, normals=good.normals * (rig.pixel_centres()[..., 1] > 30)[None, ..., None])
    assert Reason.TRANSPARENT in codes(holes, rig)


def test_a_toon_outline_is_tagged_and_kept(rig: Cameras) -> None:
    outlined = replace(ball(rig), facts=FACTS | {"inverted_hull": 0.5})
    result = apply_filters(outlined, rig, FilterConfig())
    assert result.tags == [Reason.INVERTED_HULL] and result.reject is None


def test_magenta_is_a_missing_texture(rig: Cameras) -> None:
    good = ball(rig)
    rgba = good.rgba.clone()
    rgba[..., :3][good.normals[..., 1] > 0.8] = torch.tensor([1.0, 0.0, 1.0])
    assert codes(replace(good, rgba=rgba), rig) == [Reason.MISSING_TEXTURE]
    rgba[..., 1] += 0.1  # pink paint is none
    assert codes(replace(good, rgba=rgba), rig) == []


def test_uniform_surfaces_are_untextured_in_any_light(rig: Cameras) -> None:
    good = ball(rig)
    light = 0.5 + 0.3 * good.normals[..., 0] + 0.15 * good.normals[..., 1] * good.normals[..., 2]
    linear = light[..., None] * torch.tensor([0.9, 0.5, 0.2])
    srgb = torch.cat([1.055 * linear ** (1 / 2.4) - 0.055, torch.ones_like(light)[..., None]], -1)
    plain = replace(good, rgba=srgb * good.rgba[..., 3:])
    findings = apply_filters(plain, rig, FilterConfig())
    assert findings.tags == [Reason.UNTEXTURED] and findings.reject is None  # a tag only, by default
    assert apply_filters(plain, rig, FilterConfig(reject=["untextured"])).reject is Reason.UNTEXTURED


def test_colour_spread_is_relative() -> None:
    normals = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    grey = torch.full((4000, 3), 0.5)
    grey[::2] += 0.1
    assert colour_spread(grey, normals) == pytest.approx(0.196, abs=0.005)  # linear light 0.266 +- 0.052
    assert colour_spread(torch.full((4000, 3), 0.5), normals) < 1e-3


def test_normals_that_the_depth_denies(rig: Cameras) -> None:
    good = ball(rig)
    assert codes(replace(good, normals=-good.normals), rig) == [Reason.NORMALS_DISAGREE]
    flipped = good.normals * torch.where(rig.pixel_centres()[..., 1] > 26, 1.0, -1.0)[None, ..., None]
    assert codes(replace(good, normals=flipped), rig) == [Reason.NORMALS_DISAGREE]  # a third of the faces
    local = torch.einsum("vji,vhwj->vhwi", rig.c2w[:, :3, :3], good.normals)
    assert codes(replace(good, normals=local), rig) == [Reason.NORMALS_DISAGREE]  # the camera's frame, not the world's
    assert codes(replace(good, normals=good.normals[..., [0, 2, 1]]), rig) == [Reason.NORMALS_DISAGREE]


def test_depth_gives_the_normals_of_a_ball(rig: Cameras) -> None:
    """Central differences over 2 of 64 pixels are a few degrees off, and not more."""
    assert normals_agreement(ball(rig), rig, 8) > 0.97
    assert normals_agreement(shown(ball(rig), torch.zeros(8, 64, 64)), rig, 8) == 1


def test_depth_gives_the_normal_of_a_plane(rig: Cameras) -> None:
    """Exactly, off the axis too: the gradients of a plane have no error."""
    normals = torch.nn.functional.normalize(rig.c2w[:, :3, 2] + torch.tensor([0.2, 0.5, -0.1]), dim=-1)
    origins, directions = rig.rays()
    plane = normals[:, None, None, :]
    along = (0.1 - (origins * plane).sum(-1)) / (directions * plane).sum(-1)
    depth = along * (directions * -rig.c2w[:, None, None, :3, 2]).sum(-1)
    everywhere = Rendered(torch.ones(8, 64, 64, 4), plane.expand(8, 64, 64, 3), depth)
    assert normals_agreement(everywhere, rig, 0.1) == 1
    off = torch.nn.functional.normalize(plane + torch.tensor([0.03, 0, 0.02]), dim=-1)
    assert normals_agreement(replace(everywhere, normals=off.expand(8, 64, 64, 3)), rig, 0.5) == 0


def test_wrong_codes_are_refused() -> None:
    with pytest.raises(InputError, match="'blurry' is not one of blank_render"):
        check_config(FilterConfig(reject=["blurry"]))


def test_the_first_rejecting_fault_is_the_reason(rig: Cameras) -> None:
    both = replace(ball(rig), facts=FACTS | {"overexposed": 0.5, "opacity": 0.1})
    findings = apply_filters(both, rig, FilterConfig())
    assert findings.tags == [Reason.TRANSPARENT, Reason.EMISSIVE] and findings.reject is Reason.TRANSPARENT
    assert "opacity 0.1 < 0.8" in findings.message and "overexposed 0.5 > 0.05" in findings.message


def test_the_worst_measure_is_found() -> None:
    config = FilterConfig()
    assert worst_measure({}, config) == (0, "")
    ratio, words = worst_measure({"coverage": 0.04, "normals_agree": 0.99, "border": 0.001}, config)
    assert ratio == pytest.approx(0.5) and "coverage 0.04" in words
    assert worst_measure({"coverage": 0.04, "normals_agree": 0.8}, config)[0] == pytest.approx(2)
    assert worst_measure({"border": 0.012}, config)[0] == pytest.approx(3)


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_bundled_objects_pass(path: Path) -> None:
    rig = cameras.preset("ortho8", 96)
    raster = rasterize(load_mesh(path).normalised(), rig, 1, "studio")
    findings = apply_filters(Rendered(raster.rgba, raster.normals, raster.depth), rig, FilterConfig())
    assert findings.reject is None, findings.message


def test_all_bundled_objects_are_there() -> None:
    assert len(OBJECTS) == 8
