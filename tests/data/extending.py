"""The source of objects of docs/how-to/extending.md, in a copy of the package that has it."""

from pathlib import Path

import pytest

from nova3d.data import sources
from nova3d.data.sources import SourceConfig
from nova3d.errors import InputError
from nova3d.rendering.meshes import load_mesh


def test_the_example_of_a_source_runs(tmp_path: Path) -> None:
    source = sources.make_source(SourceConfig(kind="boxes"))
    assets = source.assets()
    assert len({asset.uid for asset in assets}) == len(assets) > 1
    mesh = load_mesh(source.fetch(assets[1], tmp_path))
    sides = mesh.vertices.amax(dim=0) - mesh.vertices.amin(dim=0)
    assert sides.tolist() == pytest.approx([2, 1, 1])
    with pytest.raises(InputError, match="source kind 'cones' is not one of boxes, folder, objaverse, gso, procedural"):
        sources.make_source(SourceConfig(kind="cones"))
