"""Kept scores: read again only while all that they depend on is the same, and equal from several processes."""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trimesh

from nova3d.errors import InputError
from nova3d.evaluation import Protocol, Table, baselines, mesh_metrics, score, score_methods, scorer
from nova3d.evaluation.cache import object_files
from nova3d.evaluation.protocols import MeshRules
from nova3d.utils.workers import in_parts
from tests.helpers.coarse import coarse_work

RULES = MeshRules(surface_samples=300, ious=("iou16_flood",), f_score_thresholds=(0.05,))
PROTOCOL = Protocol(kinds=("meshes",), hull_cells=0, failures="score", meshes=RULES)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """References of two boxes; a method that has both, another that lacks one."""
    found = tuple(tmp_path / name for name in ("references", "full", "part"))
    for folder, names in zip(found, (("a", "b"), ("a", "b"), ("a",)), strict=True):
        folder.mkdir()
        for index, name in enumerate(names):
            size = (1.0, 0.5 + 0.1 * index, 0.9 if folder.name == "full" else 0.8)
            trimesh.creation.box(size).export(folder / f"{name}.ply")
    return found  # type: ignore[return-value]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured and not read: "baselines", or the folder of a prediction."""
    calls: list[str] = []
    prediction, baselines = scorer.score_prediction, scorer.score_baselines
    monkeypatch.setattr(scorer, "score_baselines", lambda made: (calls.append("baselines"), baselines(made))[1])
    monkeypatch.setattr(
        scorer,
        "score_prediction",
        lambda made, folder, how: (calls.append(folder.root.name), prediction(made, folder, how))[1],
    )
    return calls


def run(folders: tuple[Path, Path, Path], workers: int = 1, protocol: Protocol = PROTOCOL) -> list[Table]:
    references, *methods = folders
    runs = {folder.name: {folder.name: folder} for folder in methods}
    cache = references.parent / "scores"
    return list(score_methods(runs, references, protocol, workers=workers, cache=cache).values())


@pytest.mark.usefixtures("coarse_shapes")
def test_tables_are_those_of_score_and_are_read_the_second_time(folders, asked):
    tables = run(folders)
    assert sorted(asked) == ["baselines", "baselines", "full", "full", "part", "part"]
    for table, folder in zip(tables, folders[1:], strict=True):
        assert table == score(folder, folders[0], PROTOCOL)
    assert tables[1].failures == {
        "b": f"'{folders[2]}' lacks a mesh (mesh.glb, or <object>.glb beside the folders) of b"
    }
    asked.clear()
    assert run(folders) == tables and asked == []


@pytest.mark.usefixtures("coarse_shapes")
def test_what_has_changed_is_scored_again_and_nothing_else(folders, asked, monkeypatch):
    first = run(folders)
    asked.clear()
    trimesh.creation.box((1, 1, 1)).export(folders[2] / "b.ply")
    second = run(folders)
    assert asked == ["part"] and second[0] == first[0] and not second[1].failures
    asked.clear()
    trimesh.creation.box((1, 1, 1)).export(folders[0] / "a.ply")
    run(folders)
    assert sorted(asked) == ["baselines", "full", "part"]
    asked.clear()
    monkeypatch.setitem(mesh_metrics.VERSIONS, "flood", 2)
    run(folders)
    assert len(asked) == 6


@pytest.mark.usefixtures("coarse_shapes")
def test_a_raised_version_of_the_baselines_measures_them_alone(folders, asked, monkeypatch):
    run(folders)
    asked.clear()
    monkeypatch.setattr(baselines, "VERSION", baselines.VERSION + 1)
    run(folders)
    assert asked == ["baselines", "baselines"]


@pytest.mark.usefixtures("coarse_shapes")
def test_kept_scores_of_an_earlier_version_are_measured_anew_with_one_line(folders, asked, caplog):
    tables = run(folders)
    for file in (folders[0].parent / "scores").rglob("*.json"):
        entry = json.loads(file.read_text())
        old = {"key": "0123456789abcdef", "lines": entry.pop("rows"), "failure": "", "missing": {}}
        file.write_text("cut sho" if file.parent.name == "part" else json.dumps(old))
    asked.clear()
    with caplog.at_level(logging.INFO):
        assert run(folders) == tables and len(asked) == 6
    assert [r.getMessage()[:13] for r in caplog.records if "recomputed" in r.getMessage()] == ["6 kept scores"]


@pytest.mark.usefixtures("coarse_shapes")
def test_the_columns_keep_their_order(folders):
    assert run(folders)[0].metrics == run(folders)[0].metrics == score(folders[1], folders[0], PROTOCOL).metrics


@pytest.mark.usefixtures("coarse_shapes")
def test_fewer_objects_are_read_and_another_protocol_is_not(folders, asked):
    run(folders)
    asked.clear()
    assert run(folders, protocol=replace(PROTOCOL, objects=("a",)))[0].objects == ["a"] and asked == []
    run(folders, protocol=replace(PROTOCOL, seed=1))
    assert len(asked) == 6


@pytest.mark.usefixtures("coarse_shapes")
def test_several_processes_give_the_same(folders, monkeypatch):
    monkeypatch.setattr(scorer, "in_parts", lambda work, *rest: in_parts(partial(coarse_work, work), *rest))
    tables = run(folders, workers=2)
    assert tables == [score(folder, folders[0], PROTOCOL) for folder in folders[1:]]


def test_a_bad_reference_ends_the_run(folders):
    (folders[0] / "a.ply").write_text("no mesh")
    with pytest.raises(InputError, match=r"a\.ply' cannot be read: it is not a PLY file"):
        run(folders)


@pytest.mark.parametrize("name", ["chair", "chair[1]", "wh?t", "*"])
def test_the_files_of_an_object_are_found_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.glb").write_text("x")
    (tmp_path / "chair1.glb").write_text("y")
    assert [file for file, _ in object_files(tmp_path, name)] == [f"{name}.glb"]
