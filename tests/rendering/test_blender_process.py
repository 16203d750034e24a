"""The Blender engine as a process: broken inputs, crashes, devices; needs `make blender`."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d import cameras
from nova3d.rendering import render_object
from nova3d.rendering.blender import BlenderEngine
from nova3d.rendering.engine import EngineConfig
from nova3d.rendering.reasons import Reason, RenderError

PYTHON = os.environ.get("NOVA3D_BLENDER_PYTHON") or str(Path(__file__).parents[2] / EngineConfig.python)
pytestmark = [
    pytest.mark.blender,
    pytest.mark.skipif(not Path(PYTHON).is_file(), reason="no Blender interpreter: run `make blender`"),
]
CONFIG = EngineConfig("blender", light="flat", samples=16, python=PYTHON)
RIG = cameras.orbit(2, 10.0, 64)
BROKEN = {
    "points": Reason.EMPTY_SCENE,
    "empty": Reason.EMPTY_SCENE,
    "dot": Reason.EMPTY_SCENE,
    "nan": Reason.PARSE_ERROR,
    "html": Reason.PARSE_ERROR,
    "cut": Reason.PARSE_ERROR,
    "zero": Reason.PARSE_ERROR,
}


@pytest.fixture(scope="module")
def blender() -> Iterator[BlenderEngine]:
    engine = BlenderEngine(CONFIG)
    yield engine
    engine.close()


def draw(engine: BlenderEngine, path: Path) -> None:
    engine.render(path, RIG, lambda done: None)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_have_their_reason(blender: BlenderEngine, broken: dict[str, Path], name: str) -> None:
    worker = blender.process
    with pytest.raises(RenderError, match=str(broken[name])) as caught:
        draw(blender, broken[name])
    assert caught.value.reason == BROKEN[name] and "\n" not in str(caught.value)
    assert blender.process is worker  # a bad file does not cost a restart


def test_out_of_view_is_blank(tmp_path: Path, gltf: Callable[[], Any]) -> None:
    file = gltf()
    file.node(mesh=file.quad(), translation=[9, 9, 9])
    engine = BlenderEngine(CONFIG, normalise=False)
    with pytest.raises(RenderError) as caught:
        draw(engine, file.save(tmp_path / "a.gltf"))
    engine.close()
    assert caught.value.reason == Reason.BLANK_RENDER


def test_a_killed_worker_is_a_crash_and_the_next_object_renders(lopsided_file: Path) -> None:
    engine = BlenderEngine(CONFIG)

    def kill(done: int) -> None:
        assert engine.process
        os.kill(engine.process.pid, signal.SIGKILL)

    with pytest.raises(RenderError, match="signal 9") as caught:
        engine.render(lopsided_file, RIG, kill)
    assert caught.value.reason == Reason.CRASH and str(lopsided_file) in str(caught.value)
    beats: list[int] = []
    rendered = engine.render(lopsided_file, RIG, beats.append)
    assert beats == [1, 2] and rendered.rgba[..., 3].max() == 1
    folder = Path(engine.folder.name)
    engine.close()
    assert engine.process is None and not folder.exists()


def test_the_worker_is_in_the_process_group_of_its_client(blender: BlenderEngine) -> None:
    assert blender.process and os.getpgid(blender.process.pid) == os.getpgid(0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "optix"])
def test_a_gpu_that_cycles_does_not_find_is_an_error(device: str) -> None:
    with pytest.raises(RenderError, match=f"{device.upper()} device") as caught:
        BlenderEngine(replace(CONFIG, device=device))
    assert caught.value.reason == Reason.DEVICE


def test_render_object_speaks_to_blender(lopsided_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA3D_BLENDER_PYTHON", PYTHON)
    views = render_object(lopsided_file, cameras.orbit(2, size=32), "blender", light="flat")
    reference = render_object(lopsided_file, cameras.orbit(2, size=32), light="flat")
    covered: Tensor = views.mask > 0.5
    assert (covered == (reference.mask > 0.5)).float().mean() > 0.98
    assert F.cosine_similarity(views.normals, reference.normals, dim=-1)[covered].median() > 0.999
