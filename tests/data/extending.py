"""The source of objects of docs/how-to/extending.md: a file and one line."""

import importlib
from pathlib import Path

import pytest

from nova3d.data import sources
from nova3d.data.sources import SourceConfig
from nova3d.errors import InputError
from nova3d.rendering.meshes import load_mesh
from tests.helpers.examples import first_example


def test_the_example_of_a_source_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boxes_source.py").write_text(first_example("how-to/extending.md", "A source of objects"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sources.SOURCES, "boxes", importlib.import_module("boxes_source").BoxSource)
    source = sources.make_source(SourceConfig(kind="boxes"))
    assets = source.assets()
    assert len({asset.uid for asset in assets}) == len(assets) > 1
    mesh = load_mesh(source.fetch(assets[1], tmp_path))
    sides = mesh.vertices.amax(dim=0) - mesh.vertices.amin(dim=0)
    assert sides.tolist() == pytest.approx([2, 1, 1])
    with pytest.raises(InputError, match="source kind 'cones' is not one of folder, objaverse, gso, procedural, boxes"):
        sources.make_source(SourceConfig(kind="cones"))
