"""What the tests of the evaluation share."""

from dataclasses import replace
from functools import partial

import pytest
import trimesh

from nova3d.cameras import preset
from nova3d.evaluation import baselines, shape_figures
from tests.evaluation.samples import ball


@pytest.fixture
def coarse_shapes(monkeypatch):
    """Baselines and figures of shapes from small pictures, for tests that ask what is scored and not how well."""
    monkeypatch.setattr(baselines, "preset", partial(preset, size=32))
    monkeypatch.setattr(shape_figures, "INPUT_SIZE", 32)
    monkeypatch.setattr(shape_figures, "_VOXELS", 16)


@pytest.fixture
def folders(tmp_path):
    """Predictions and references of two objects, alike but for a tint and the mesh's size."""
    for name in ("cup", "hat"):
        ref = ball()
        ref.save(tmp_path / "ref" / name)
        replace(ref, rgb=(ref.rgb - 0.1).clamp(0, 1)).save(tmp_path / "pred" / name)
        trimesh.creation.icosphere(2, 0.5).export(tmp_path / "ref" / name / "mesh.glb")
        trimesh.creation.icosphere(2, 0.4).export(tmp_path / "pred" / name / "mesh.glb")
    return tmp_path / "pred", tmp_path / "ref"
