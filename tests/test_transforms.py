import json
import math
from typing import Any

import pytest
import torch

from nova3d import cameras
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.transforms import cameras_from_transforms, cameras_to_transforms


@pytest.mark.parametrize("name", cameras.PRESETS)
def test_transforms_round_trip_through_json(name: str) -> None:
    rig = cameras.preset(name, 64)
    back = cameras_from_transforms(json.loads(json.dumps(cameras_to_transforms(rig))))
    assert torch.equal(back.c2w, rig.c2w)
    assert torch.equal(back.intrinsics, rig.intrinsics)
    assert (back.width, back.height, back.model) == (rig.width, rig.height, rig.model)


def test_transforms_keep_intrinsics_that_differ_between_views() -> None:
    rig = cameras.orbit(3, size=8)
    rig = Cameras(rig.c2w, rig.intrinsics * torch.tensor([[1.0], [2.0], [3.0]]), 8, 8, "perspective")
    transforms = cameras_to_transforms(rig)
    assert "fl_x" not in transforms
    assert torch.equal(cameras_from_transforms(transforms).intrinsics, rig.intrinsics)


def _broken(**changes: Any) -> dict[str, Any]:
    transforms = cameras_to_transforms(cameras.orbit(2, size=8)) | changes
    return {key: value for key, value in transforms.items() if value != "REMOVED"}


SHEARED = [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
TRANSPOSED = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 2, 1]]
MIRRORED = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (_broken(frames=[]), "no frames"),
        (_broken(fl_x="REMOVED"), "'fl_x' is missing"),
        (_broken(w="REMOVED"), "'w' is missing"),
        (_broken(frames=[{}]), "'transform_matrix' is missing"),
        (_broken(frames=[{"transform_matrix": [[1, 0], [0, 1]]}]), "4x4"),
        (_broken(frames=[{"transform_matrix": MIRRORED}]), "mirrored"),
        (_broken(frames=[{"transform_matrix": (2 * torch.eye(4)).tolist()}]), "scaled"),
        (_broken(frames=[{"transform_matrix": "no"}]), "cam.json"),
        (_broken(fl_x=0.0), "must be positive"),
        (_broken(k1=0.1), "distortion"),
        (_broken(camera_model="FISHEYE"), "FISHEYE"),
        (_broken(frames={"a": 1}), "'frames' must be a list"),
        (_broken(frames=[{"transform_matrix": MIRRORED, "k4": 0.1}]), r"distortion \(k4\)"),
        (_broken(fl_y=math.inf), "finite numbers"),
        (_broken(frames=[{"transform_matrix": TRANSPOSED}]), "frame 0: .* transposed"),
        (_broken(frames=[{"transform_matrix": SHEARED}]), "frame 0: .* sheared"),
    ],
)
def test_bad_transforms_say_what_is_wrong(transforms: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cameras_from_transforms(transforms, "cam.json")
    assert str(caught.value).startswith("cam.json: ")
