"""The box that normalises an object: specks far away are not part of it, everything else is."""

from typing import Any

import numpy as np
import pytest
import trimesh

from nova3d.rendering.meshes import normalisation


def both(*parts: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    mesh: Any = trimesh.util.concatenate(parts)
    return np.array(mesh.vertices), np.array(mesh.faces)


def box(size: float, x: float = 0.0) -> trimesh.Trimesh:
    mesh = trimesh.creation.box((size, size, size))
    mesh.apply_translation((x, 0, 0))
    mesh.unmerge_vertices()  # as files store hard edges
    return mesh


def test_a_box_is_centred_and_its_longest_side_becomes_one() -> None:
    mesh = trimesh.creation.box((4, 2, 1))
    mesh.apply_translation((3, -2, 7))
    scale, centre = normalisation(*both(mesh))
    assert scale == pytest.approx(0.25) and centre == pytest.approx([3, -2, 7])


@pytest.mark.parametrize(
    ("size", "x", "counts"),
    [
        (0.005, 500.0, False),  # a speck: small and far
        (0.005, 3.0, True),  # near: a detail
        (0.05, 500.0, True),  # far, but a four-hundredth of the object's surface
    ],
)
def test_only_what_is_both_small_and_far_is_left_out(size: float, x: float, counts: bool) -> None:
    scale, centre = normalisation(*both(box(1), box(size, x)))
    longest = (x + size / 2 + 0.5) if counts else 1.0
    assert 1 / scale == pytest.approx(longest)
    assert centre[0] == pytest.approx(longest / 2 - 0.5)


def test_the_radius_reaches_to_the_farthest_corners_of_the_faces() -> None:
    angles = np.arange(32) * 2 * np.pi / 32
    rim = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    fan = trimesh.Trimesh([[0, 0, 0], *rim], [[0, k + 1, (k + 1) % 32 + 1] for k in range(32)], process=False)
    scale, _ = normalisation(*both(fan, box(0.005, 5.0)))  # at five radii: a detail, though every face meets the middle
    assert 1 / scale == pytest.approx(6.0025)


def test_a_long_needle_of_the_object_itself_is_kept() -> None:
    # Its far half touches the object only by the position of its near half's tip.
    near = trimesh.Trimesh([[0.5, 0, 0], [0.5, 1e-6, 0], [90, 0, 0]], [[0, 1, 2]])
    far = trimesh.Trimesh([[90, 0, 0], [90, 1e-6, 0], [180, 0, 0]], [[0, 1, 2]])
    scale, _ = normalisation(*both(box(1), near, far))
    assert 1 / scale == pytest.approx(180.5)
