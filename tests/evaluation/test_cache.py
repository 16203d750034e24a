"""Scores on disk: read again only while all that they hang on is what it was, and the same from several processes."""

from dataclasses import replace
from pathlib import Path

import pytest
import trimesh

from nova3d.errors import InputError
from nova3d.evaluation import Protocol, score
from nova3d.evaluation import cache as scores
from nova3d.evaluation.protocols import MeshRules
from nova3d.evaluation.scorer import Contest, tabulate

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
    """What is scored and not read: "floors", or the folder of a prediction."""
    calls: list[str] = []
    prediction, floors = scores.score_prediction, scores.score_floors
    monkeypatch.setattr(scores, "score_floors", lambda made: (calls.append("floors"), floors(made))[1])
    monkeypatch.setattr(
        scores,
        "score_prediction",
        lambda made, seed, how: (calls.append(seed.root.name), prediction(made, seed, how))[1],
    )
    return calls


def run(folders: tuple[Path, Path, Path], workers: int = 1, protocol: Protocol = PROTOCOL):
    references, *methods = folders
    contest = Contest.of(methods, references, protocol)
    found, floors, networks = scores.in_shares(
        contest, references.parent / "scores", ["full", "part"], "cpu", workers, {}
    )
    tables = [
        tabulate(replace(contest, seeds=contest.seeds[i : i + 1]), [scored], floors, networks)
        for i, scored in enumerate(found)
    ]
    return tables


def test_tables_are_those_of_score_and_are_read_the_second_time(folders, asked):
    tables = run(folders)
    assert sorted(asked) == ["floors", "floors", "full", "full", "part", "part"]
    for table, folder in zip(tables, folders[1:], strict=True):
        assert table == score(folder, folders[0], PROTOCOL)
    assert tables[1].failures == {
        "b": f"'{folders[2]}' lacks a mesh (mesh.glb, or <object>.glb beside the folders) of b"
    }
    asked.clear()
    assert run(folders) == tables and asked == []


def test_what_has_changed_is_scored_again_and_nothing_else(folders, asked, monkeypatch):
    first = run(folders)
    asked.clear()
    trimesh.creation.box((1, 1, 1)).export(folders[2] / "b.ply")
    second = run(folders)
    assert asked == ["part"] and second[0] == first[0] and not second[1].failures
    asked.clear()
    trimesh.creation.box((1, 1, 1)).export(folders[0] / "a.ply")
    run(folders)
    assert sorted(asked) == ["floors", "full", "part"]
    asked.clear()
    monkeypatch.setattr(scores, "sources_hash", lambda: "another")
    run(folders)
    assert len(asked) == 6


def test_fewer_objects_are_read_and_another_protocol_is_not(folders, asked):
    run(folders)
    asked.clear()
    assert run(folders, protocol=replace(PROTOCOL, objects=("a",)))[0].objects == ["a"] and asked == []
    run(folders, protocol=replace(PROTOCOL, seed=1))
    assert len(asked) == 6


def test_several_processes_give_the_same(folders):
    tables = run(folders, workers=2)
    assert tables == [score(folder, folders[0], PROTOCOL) for folder in folders[1:]]


def test_a_bad_reference_ends_the_run(folders):
    (folders[0] / "a.ply").write_text("no mesh")
    with pytest.raises(InputError, match=r"a\.ply' cannot be read as a mesh"):
        run(folders)
