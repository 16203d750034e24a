"""A small run whose views are true pictures of its mesh, for the pages that show it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nova3d.cameras import orbit
from nova3d.rendering import render_object
from nova3d.report import write_report
from tests.helpers.meshes import write_lopsided


@pytest.fixture(scope="session")
def write_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write the report of a lopsided mesh and its views; keywords replace what `write_report` is given."""
    folder = tmp_path_factory.mktemp("run")
    glb = write_lopsided(folder / "lopsided.glb")

    def write(name: str, rig: str = "orthographic", views: int = 8, **changes: Any) -> Path:
        cameras = orbit(views, 0.0 if rig == "orthographic" else 20.0, 256, rig, radius=2.4)
        shown = render_object(glb, cameras, light="flat", normalise=False)
        turn = torch.eye(4).repeat(views, 1, 1)  # about the viewing axis of view 2, so that its picture rolls
        turn[2, 1:3, 1:3] = torch.tensor([[0.995, -0.0998], [0.0998, 0.995]])
        arguments: dict[str, Any] = {
            "title": "Lopsided",
            "views": shown,
            "input_image": shown.straight_alpha(0),
            "mesh_path": glb,
            "cameras": replace(cameras, c2w=turn @ cameras.c2w),
            "conflict": torch.linspace(0, 1, 256).expand(views, 256, 256) * shown.mask,
            "health": {"faces": 36, "watertight": False, "components": 3, "conflict_mean": 0.25},
            "warnings": ["A warning."],
            "notes": ["A note."],
            "model": ["A limit."],
            "history": [{"step": 10 * i, "colour": 1 / (i + 1)} for i in range(9)],
            "timings": {"sampling": 30.0, "fusion": 90.0},
            "record": {"created": "2025-01-01T10:20:30+00:00", "nova3d": "0.1.0", "seed": 7},
        }
        return write_report(folder / f"{name}.html", **(arguments | changes))

    return write
