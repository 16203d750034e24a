import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nova3d.calibration import FILE, OFFSETS_DEG, Calibration, offset_shares
from nova3d.cameras import orbit
from nova3d.errors import InputError
from nova3d.views import ViewSet

CALIBRATION = Calibration(
    object=tuple(range(1, 9)),
    background=tuple(-2.0 * k for k in range(1, 9)),
    prior=(0.5, 1.0, 0.25, -0.125, 0.0),
    colours=(0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    inflated_normals=0.25,
    facts={"objects": 12},
)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    assert Calibration.load(tmp_path) is None
    assert CALIBRATION.save(tmp_path) == tmp_path / FILE
    assert Calibration.load(tmp_path) == CALIBRATION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": [1.0] * 7}, "'object' of the calibration must be 8 finite numbers"),
        ({"prior": [1.0, "a", 1, 1, 1]}, "'prior' of the calibration must be 7 finite numbers"),
        ({"prior": [1.0] * 6}, "'prior' of the calibration must be 7 finite numbers"),
        ({"background": 3}, "'background' of the calibration must be 8 finite numbers"),
        ({"prior": [1e400, 1, 1, 1, 1]}, "not valid JSON"),
        ({"inflated_normals": 1.5}, "'inflated_normals' must be a number from 0 to 1"),
        ({"more": 1}, "a calibration has the keys object, background, prior, colours, inflated_normals"),
        ({"colours": [1.0] * 7 + [1.5]}, "'colours' of the calibration must be numbers from 0 to 1"),
        ({"colours": [1.0] * 7}, "'colours' of the calibration must be 8 finite numbers"),
    ],
)
def test_a_file_is_not_believed_before_it_is_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(CALIBRATION.to_dict() | change))
    with pytest.raises(InputError, match=message):
        Calibration.load(tmp_path)


def test_votes_are_those_of_the_offset_whatever_its_sign_and_linear_between() -> None:
    offsets = torch.tensor([22.5, -22.5, 337.5, 180.0, 33.75, 5.0] + [90.0] * 9).deg2rad()
    for_object, for_background = CALIBRATION.votes(offsets)
    expected = torch.tensor([1.0, 1, 1, 8, 1.5, 1] + [4.0] * 9)
    torch.testing.assert_close(for_object, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(for_background, -2 * expected, atol=2e-4, rtol=0)


def test_shares_of_colours_do_not_depend_on_how_many_views_there_are() -> None:
    expected = torch.tensor([0.8, 0.5, 0.1, 0.75])
    offsets = torch.tensor([22.5, -90.0, 180.0, 33.75]).deg2rad()
    for count in (1, 4):
        torch.testing.assert_close(CALIBRATION.colour_shares(offsets.repeat(count))[:4], expected, atol=1e-4, rtol=0)


def test_few_views_weigh_as_much_as_sixteen() -> None:
    few = torch.tensor([90.0, 180.0, 270.0]).deg2rad()
    torch.testing.assert_close(offset_shares(few).sum(dim=1), torch.full((3,), 4.0))
    many = torch.arange(1, 16) * math.pi / 8
    shares = offset_shares(many)
    torch.testing.assert_close(shares.sum(dim=0), torch.tensor([2.0] * 7 + [1.0]), atol=1e-5, rtol=0)
    assert shares.shape == (15, len(OFFSETS_DEG))


def test_views_carry_it_into_their_folder_and_through_every_change(tmp_path: Path) -> None:
    blank = torch.zeros(4, 8, 8, 3)
    views = ViewSet(torch.ones_like(blank), blank, blank[..., 0], orbit(4, size=8), (True, False, False, False))
    views = replace(views, calibration=CALIBRATION)
    for changed in (views[[0, 2]], views[1:], views.resized(4), views.rotated_to(1), views.to("cpu")):
        assert changed.calibration == CALIBRATION
    folder = views.save(tmp_path / "views")
    assert ViewSet.load(folder).calibration == CALIBRATION
    transforms = json.loads((folder / "transforms.json").read_text())
    transforms["calibration"]["prior"] = []
    (folder / "transforms.json").write_text(json.dumps(transforms))
    with pytest.raises(InputError, match=r"transforms\.json: 'prior' of the calibration"):
        ViewSet.load(folder)
