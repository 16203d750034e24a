"""An engine for the real worker: `engine.name: fake_engine:make`. Its "meshes" are JSON files that say what goes wrong.

{"shade": 0.7} is drawn as a sphere of that brightness. {"fault": NAME, "times": n} goes wrong the first n times (0:
always); tries are counted in the folder NOVA3D_FAKE_STATE.
"""

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nova3d.cameras import Cameras
from nova3d.rendering.engine import EngineConfig, Rendered
from nova3d.rendering.reasons import Reason, RenderError

RADIUS = 0.5


class FakeEngine:
    def __init__(self, config: EngineConfig):
        self.device = os.environ.get("NOVA3D_FAKE_DEVICE") or config.device

    def describe(self) -> dict[str, Any]:
        return {"name": "fake", "version": "1", "device": self.device}

    def render(self, path: Path, cameras: Cameras, beat: Callable[[int], None]) -> Rendered:
        mesh = json.loads(path.read_text())
        fault = mesh.get("fault", "") if due(path.stem, mesh) else ""
        if fault == "refuse":
            raise RenderError(Reason.EMPTY_SCENE, f"'{path}' has no triangles")
        if fault == "bug":
            raise ZeroDivisionError("a bug of the engine")
        if fault == "crash":
            start_grandchild()
            os.write(1, b"the last words of a worker\n")  # stdout is the log
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # as a full disk: writes fail after some bytes
        if fault == "sleep":
            start_grandchild()
            time.sleep(float(mesh["seconds"]))
        rendered = sphere(cameras, float(mesh.get("shade", 0.5)), visible=fault != "blank")
        for view in range(len(cameras)):
            beat(view + 1)
        return rendered

    def close(self) -> None:
        pass


def make(config: EngineConfig) -> FakeEngine:
    return FakeEngine(config)


def start_grandchild() -> None:
    """Start a process that outlives the worker, as Blender may, and inherits every descriptor that can be."""
    command = ["tail", "-f", "/dev/null", os.environ["NOVA3D_FAKE_STATE"]]
    subprocess.Popen(command, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def due(name: str, mesh: dict[str, Any]) -> bool:
    """Whether this try is to fail; counts it."""
    folder = Path(os.environ["NOVA3D_FAKE_STATE"])
    tries = len(list(folder.glob(f"{name}.*")))
    (folder / f"{name}.{tries}.{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    return not mesh.get("times") or tries < mesh["times"]


def sphere(cameras: Cameras, shade: float, visible: bool) -> Rendered:
    origins, directions = cameras.rays()
    along = -(origins * directions).sum(-1)
    offset = (origins + along[..., None] * directions).norm(dim=-1)
    inside = (offset < RADIUS) & visible
    depth = (along - (RADIUS**2 - offset**2).clamp_min(0).sqrt()) * inside
    normals = (origins + depth[..., None] * directions) / RADIUS * inside[..., None]
    rgb = (shade + 0.3 * normals).clamp(0, 1) * inside[..., None]
    rgba = torch.cat([rgb, inside[..., None].float()], dim=-1)
    return Rendered(
        rgba, torch.nn.functional.normalize(normals, dim=-1), depth, {"opacity": 1.0, "missing_textures": 0}
    )
