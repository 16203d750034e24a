"""What a user is told of a picture, a model and a mesh."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from nova3d import notes
from nova3d.cameras import orbit, preset
from nova3d.choices import CutoutMethod
from nova3d.evaluation.input_view import InputAgreement
from nova3d.images import CutOut
from nova3d.utils import resources

HEALTH = {"components": 1, "faces": 12, "watertight": True, "unseen_share": 0.1, "conflict_mean": 0.0}
GOOD = InputAgreement(input_iou=0.98, input_psnr=28.0, parts_seen=1, parts_of_picture=1)
CAMERAS = preset("ortho16", 32)


def picture(method: str = "alpha", warnings: tuple[str, ...] = ()) -> CutOut:
    return CutOut(torch.ones(4, 4, 4), torch.full((4, 4), 255, dtype=torch.uint8), method, list(warnings))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_iou": notes.LEAST_INPUT_IOU - 0.01}, "does not have the picture's outline (IoU 0.92)"),
        ({"input_psnr": notes.LEAST_INPUT_PSNR - 0.1}, "does not have the picture's colours (19.9 dB)"),
        ({"input_psnr": float("nan")}, "does not have the picture's colours"),
    ],
)
def test_what_falls_below_a_threshold_is_one_warning(change: dict[str, float], said: str) -> None:
    assert notes.mesh_warnings(HEALTH, GOOD) == []
    (warning,) = notes.mesh_warnings(HEALTH, replace(GOOD, **change))
    assert said in warning


def test_parts_and_conflict_are_warned_of_and_parts_only_beside_a_picture() -> None:
    broken = HEALTH | {"components": 2, "conflict_mean": notes.MOST_CONFLICT + 0.05}
    parts, conflict = notes.mesh_warnings(broken, GOOD)
    assert "in 2 parts where the picture shows 1 part." in parts and "mean conflict 0.15" in conflict
    assert notes.mesh_warnings(broken, None) == [conflict]
    assert notes.mesh_warnings(broken, replace(GOOD, parts_of_picture=2)) == [conflict]


def test_a_mesh_s_notes_say_whose_colours_it_has() -> None:
    assert notes.mesh_notes(HEALTH, None) == [
        "12 faces in 1 part, watertight; 10 % of the texture was seen by no view and is a guess."
    ]
    painted = HEALTH | {"trusted_share": 0.42, "mirrored_share": 0.004}
    text = " ".join(notes.mesh_notes(painted, GOOD))
    assert "IoU of 0.98" in text and "PSNR of 28.0 dB" in text
    assert "42 % of the texture comes from the picture, where it sees the surface, and 58 %" in text
    assert "projected through" not in text
    assert "30 % has the picture's colours projected through" in " ".join(
        notes.mesh_notes(painted | {"mirrored_share": 0.3}, GOOD)
    )


@pytest.mark.parametrize(("known", "told"), [(False, "a guess; where you know it, set"), (True, "as you said.")])
def test_a_mesh_s_notes_say_how_deep_it_is_and_who_says_so(known: bool, told: str) -> None:
    lines = notes.mesh_notes(HEALTH | {"depth_ratio": 0.621, "depth_known": known}, GOOD)
    (line,) = (line for line in lines if "From front to back" in line)
    assert "is 0.62 of its longest side in the picture" in line and told in line
    assert not any("From front to back" in line for line in notes.mesh_notes(HEALTH, GOOD))
    alone = notes.mesh_notes(HEALTH | {"depth_ratio": 0.621, "depth_known": known}, None)
    assert alone[-1] == line.replace("sample.", "extract.")


@pytest.mark.parametrize("method", [*(m for m in get_args(CutoutMethod) if m != "auto"), "mask"])
def test_every_way_of_cutting_out_has_its_words(method: str) -> None:
    cut_out, view = notes.picture_notes(picture(method), CAMERAS)
    assert cut_out.startswith("The object was ") and cut_out.endswith("; views/mask.png is the mask.")
    assert "from 0 degrees above the object" in view


def test_an_elevation_that_the_model_cannot_use_is_a_warning() -> None:
    assert notes.picture_warnings(picture(warnings=("It is small.",)), 5.0, CAMERAS) == ["It is small."]
    (warning,) = notes.picture_warnings(picture(), 20.0, CAMERAS)
    assert "look down by 20 degrees" in warning and "from 0 degrees and cannot use this" in warning
    assert notes.picture_warnings(picture(), 20.0, orbit(4, 20.0, size=32)) == []


def test_the_bundled_model_is_called_a_demonstration(tmp_path: Path) -> None:
    for name in ("nova3d-mini", str(resources.root() / "assets/nova3d-mini")):
        assert "nova3d-mini, the bundled model: a demonstration" in notes.model_note(name, 128)
    assert notes.model_note("runs/mine", 256) == "Views of 256 px by the model runs/mine."
    assert notes.model_note(str(tmp_path), 256) == f"Views of 256 px by the model {tmp_path.name}."
