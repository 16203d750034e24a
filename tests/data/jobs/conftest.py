"""Jobs on "meshes" that are JSON files saying what goes wrong; see fake_engine.py and fake_worker.py."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from nova3d.data import duplicates
from nova3d.data.filters import FilterConfig
from nova3d.data.jobs import worker_client
from nova3d.data.jobs.config import PoolConfig, RenderConfig, rig_digest
from nova3d.data.shards import encode_pictures
from nova3d.data.sources import SourceConfig
from nova3d.rendering.engine import EngineConfig

HERE = Path(__file__).parent
MakeJob = Callable[..., RenderConfig]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("NOVA3D_FAKE_STATE", str(state))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setattr("nova3d.data.jobs.scheduler._POLL_SECONDS", 0.02)
    monkeypatch.setattr("nova3d.data.jobs.scheduler._MEMORY_SECONDS", 0.05)


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """Writes the meshes of a job ({uid: content}) and returns its config; `pool` are PoolConfig's fields."""

    def make(meshes: dict[str, dict[str, Any]], out: str = "out", **pool: Any) -> RenderConfig:
        source = tmp_path / "meshes"
        source.mkdir(exist_ok=True)
        for uid, mesh in meshes.items():
            (source / f"{uid}.obj").write_text(json.dumps({"shade": (sum(uid.encode()) % 50 + 20) / 100} | mesh))
        return RenderConfig(
            source=SourceConfig(path=str(source)),
            engine=EngineConfig(name="fake_engine:make"),
            filters=FilterConfig(reject=["blank_render", "tiny_coverage", "clipped", "normals_disagree"]),
            pool=PoolConfig(**({"workers": 1, "scratch": str(tmp_path / "scratch")} | pool)),
            preset="ortho4",
            size=24,
            out=str(tmp_path / out),
            samples_per_shard=3,
            val_share=0.3,
        )

    return make


@pytest.fixture
def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the pool start fake_worker.py in place of the real worker."""
    rig = RenderConfig(preset="ortho4", size=24).cameras()
    rendered = load("fake_engine").sphere(rig, 0.5, visible=True)
    facts = {
        "rig": rig_digest(rig),
        "engine": {"name": "fake"},
        "size_bytes": 1,
        "measures": {},
        "tags": [],
        "views": duplicates.view_hashes(rendered.rgba),
    }
    template = tmp_path / "template"
    template.mkdir()
    for name, content in encode_pictures("x", rendered.rgba, rendered.normals, facts).items():
        (template / name.removeprefix("x.")).write_bytes(content)
    monkeypatch.setenv("NOVA3D_FAKE_TEMPLATE", str(template))
    monkeypatch.setattr(worker_client, "WORKER", (str(HERE / "fake_worker.py"),))


@pytest.fixture
def tries(tmp_path: Path) -> Callable[[str], list[int]]:
    """The process ids that tried an object, in order."""

    def count(uid: str) -> list[int]:
        marks = sorted((tmp_path / "state").glob(f"{uid}.*"), key=lambda mark: int(mark.name.split(".")[1]))
        return [int(mark.name.split(".")[2]) for mark in marks]

    return count


@pytest.fixture
def grandchildren(tmp_path: Path) -> Callable[[], list[int]]:
    """The processes that the fakes have started and nobody has ended."""

    def find() -> list[int]:
        processes = psutil.process_iter(["cmdline"])
        return [p.pid for p in processes if p.info["cmdline"] == ["tail", "-f", "/dev/null", str(tmp_path / "state")]]

    return find


@pytest.fixture
def same_files() -> Callable[[Path, Path], list[str]]:
    """The files in which two packed jobs differ; run records are left out, they name times."""

    def compare(a: Path, b: Path) -> list[str]:
        names = {
            str(path.relative_to(root))
            for root in (a, b)
            for split in ("train", "val")
            for path in (root / split).glob("*")
            if path.name != "record.json"
        }
        assert any(name.endswith(".tar") for name in names)
        return [n for n in sorted(names) if not ((a / n).is_file() and (b / n).is_file())
                or (a / n).read_bytes() != (b / n).read_bytes()]  # fmt: skip

    return compare


def load(name: str) -> ModuleType:
    """A module that lies beside this file."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
