import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nova3d.cameras import preset
from nova3d.errors import InputError
from nova3d.evaluation.input_view import draw_input_view, input_agreement
from nova3d.fusion.export import coloured, textured
from nova3d.images import frame_object
from nova3d.metrics import INPUT_SIZE
from nova3d.notes import mesh_notes, mesh_warnings

CAMERA = preset("ortho16", 128)[0]
HEALTH = {"components": 1, "faces": 12, "watertight": True, "unseen_share": 0.1, "conflict_mean": 0.0}


def picture_of(colour: tuple[float, float, float], height: int = 300) -> Tensor:
    """A rectangle of one colour, 200 pixels wide, framed."""
    rgba = torch.zeros(400, 400, 4)
    rgba[50 : 50 + height, 100:300] = torch.tensor([*colour, 1.0])
    return frame_object(rgba, INPUT_SIZE)


def box(colour: tuple[float, float, float], width: float = 2 / 3) -> trimesh.Trimesh:
    """A box of one colour with its front at z = 0.2."""
    mesh = trimesh.creation.box([width, 1, 0.4])
    return coloured(mesh, np.tile(np.float32(colour), (8, 1)))


def test_the_mesh_of_a_picture_agrees_with_it() -> None:
    found = input_agreement(box((0.2, 0.5, 0.7)), picture_of((0.2, 0.5, 0.7)), CAMERA)
    assert found.input_iou > 0.985 and found.input_psnr > 35
    assert (found.parts_seen, found.parts_of_picture) == (1, 1)


def test_outline_and_colours_count_by_themselves() -> None:
    picture = picture_of((0.2, 0.5, 0.7))
    narrow = input_agreement(box((0.2, 0.5, 0.7), 1 / 3), picture, CAMERA)
    assert narrow.input_iou == pytest.approx(0.5, abs=0.01)
    # Half of the object's pixels are white instead: the mean square of 1 - colour over the channels, halved.
    assert narrow.input_psnr == pytest.approx(-10 * np.log10((0.64 + 0.25 + 0.09) / 3 / 2), abs=0.2)
    darker = input_agreement(box((0.1, 0.4, 0.6)), picture, CAMERA)
    assert darker.input_iou > 0.985 and darker.input_psnr == pytest.approx(20, abs=0.3)


def test_a_texture_is_drawn_as_vertex_colours_are() -> None:
    front = np.array([[-0.3, -0.5, 0], [0.3, -0.5, 0], [0.3, 0.5, 0], [-0.3, 0.5, 0]])
    faces, normals = np.array([[0, 1, 2], [0, 2, 3]]), np.tile([0.0, 0, 1], (4, 1))
    uv = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    texture = np.full((8, 8, 3), [51, 128, 179], np.uint8)
    one = draw_input_view(textured(front, faces, uv, texture, normals), CAMERA)
    plain = trimesh.Trimesh(front, faces, vertex_normals=normals, process=False)
    other = draw_input_view(coloured(plain, np.tile(np.float32([51, 128, 179]) / 255, (4, 1))), CAMERA)
    assert torch.allclose(one, other, atol=2e-3) and float(one[..., 3].mean()) == pytest.approx(0.6 / 1.5**2, abs=0.01)


def test_parts_are_counted_and_specks_are_not() -> None:
    two = trimesh.util.concatenate([box((0, 0, 0), 0.2).apply_translation([x, 0, 0]) for x in (-0.3, 0.3)])
    found = input_agreement(two, picture_of((0.0, 0.0, 0.0)), CAMERA)
    assert (found.parts_seen, found.parts_of_picture) == (2, 1)
    speck = trimesh.util.concatenate([two, trimesh.creation.box([0.008] * 3)])
    assert input_agreement(speck, picture_of((0.0, 0.0, 0.0)), CAMERA).parts_seen == 2


def test_a_mesh_out_of_the_picture_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be compared with its picture"):
        draw_input_view(box((0, 0, 0)).apply_translation([5, 0, 0]), CAMERA)


def test_what_falls_below_a_threshold_is_said() -> None:
    good = input_agreement(box((0.2, 0.5, 0.7)), picture_of((0.2, 0.5, 0.7)), CAMERA)
    assert mesh_warnings(HEALTH, good) == []
    assert any("IoU of 0.9" in line or "IoU of 1.00" in line for line in mesh_notes(HEALTH, good))
    bad = input_agreement(box((0.9, 0.9, 0.9), 0.3), picture_of((0.2, 0.5, 0.7)), CAMERA)
    said = " ".join(mesh_warnings(HEALTH | {"components": 3, "conflict_mean": 0.2}, bad))
    for part in ("outline (IoU 0.45)", "colours (", "in 3 parts where the picture shows 1 part", "contradict"):
        assert part in said
