"""What the tests of the evaluation share."""

from dataclasses import replace

import pytest
import trimesh

from tests.evaluation.samples import ball


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
