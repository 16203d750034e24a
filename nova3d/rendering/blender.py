"""The Cycles engine: a client of the Blender worker, which has its own interpreter and stays alive between objects.

Worker and client share a process group, so that killing the group takes both; a worker whose client is gone reads the
end of its requests and leaves.
"""

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.rendering.engine import Beat, EngineConfig, Rendered
from nova3d.rendering.framing import check_geometry, normalisation
from nova3d.rendering.mesh_files import inspect_file
from nova3d.rendering.reasons import Reason, RenderFault

WORKER = Path(__file__).with_name("blender_worker")
START_SECONDS = 120.0  # importing bpy takes half a second; a cold disk or a GPU driver's start much longer
TAIL_LINES = 8  # of Blender's own messages, in the error of a crash
OVEREXPOSED = 1.05  # linear light: above what noise and highlights add to plain white
_SETTINGS = ("device", "light", "samples", "denoise", "threads", "normals")


class BlenderEngine:
    """Path-traced pictures of the pose at frame 0, with materials, translucency and emission as Blender reads them.

    Raises InputError where the interpreter is missing, RenderFault (DEVICE) where Cycles lacks the device.
    """

    def __init__(self, config: EngineConfig, normalise: bool = True):
        self.config, self.normalise = config, normalise
        self.python = Path(os.environ.get("NOVA3D_BLENDER_PYTHON") or config.python)
        if not self.python.is_file():
            raise InputError(f"no Blender interpreter at '{self.python}': run `make blender`, or set engine.python")
        self.folder = tempfile.TemporaryDirectory(prefix="nova3d-blender-")
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def describe(self) -> dict[str, Any]:
        """Name, Blender's version and the settings that change pixels."""
        keys = ("device", "light", "samples", "denoise", "normals")
        return {"name": "blender", "version": self.version} | {k: getattr(self.config, k) for k in keys}

    def render(self, path: Path, cameras: Cameras, beat: Beat) -> Rendered:
        """Render the mesh at `path`. After a crash of the worker (RenderFault CRASH) the next call starts another."""
        file = inspect_file(path)
        if file.compression == "EXT_meshopt_compression":
            raise RenderFault(Reason.DRACO, f"mesh '{path}' is compressed with {file.compression}, which Blender lacks")
        if self.process is None:
            self._start()
        square = bool((cameras.intrinsics[:, 0] - cameras.intrinsics[:, 1]).abs().max() < 1e-3)
        if not square and not self.version.startswith("4."):
            raise InputError(f"Blender {self.version} cannot save pictures of pixels that are not square; use bpy 4.5")
        (Path(self.folder.name) / "log").write_bytes(b"")  # only this object's messages
        with self._named(path):
            facts = self._ask({"load": str(path.resolve())}, "loaded", beat)
            vertices, faces = self._array("vertices"), self._array("faces")
            check_geometry(vertices, faces, str(path))
            scale, centre = normalisation(vertices, faces) if self.normalise else (1.0, np.zeros(3))
            request = {"scale": scale, "centre": centre.tolist(), "cameras": cameras.to_transforms()}
            self._ask({"render": request}, "rendered", beat)
        rgba, normals, depth = (torch.from_numpy(self._array(name)) for name in ("rgba", "normals", "depth"))
        if not bool((rgba[..., 3] > 0).any()):
            raise RenderFault(Reason.BLANK_RENDER, f"'{path}': nothing of it is in any view")
        facts |= {
            "triangles": len(faces),
            "skins": file.skins,
            "pose": "frame 0",
            "scale": scale,
            "centre": centre.tolist(),
            "opacity": _opacity(rgba[..., 3], depth),
            "translucency": "blended",
            "overexposed": _overexposed(rgba),
            "missing_textures": max(facts["missing_textures"], file.missing_textures),
        }
        covered = (rgba[..., 3:] > 0).float()
        return Rendered(_display(rgba), F.normalize(normals, dim=-1) * covered, depth * covered[..., 0], facts)

    def close(self) -> None:
        """End the worker and delete its folder."""
        self._stop()
        self.folder.cleanup()

    def _start(self) -> None:
        settings = {key: getattr(self.config, key) for key in _SETTINGS} | {"folder": self.folder.name}
        log = (Path(self.folder.name) / "log").open("ab")  # appending, so that it can be emptied under the worker
        # The folder also takes Blender's temporary files and keeps the user's own add-ons and settings out.
        environment = os.environ | {"TMPDIR": self.folder.name, "BLENDER_USER_RESOURCES": self.folder.name}
        command = [str(self.python), "-I", str(WORKER), json.dumps(settings)]
        pipe = subprocess.PIPE
        with log:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env=environment)
        self._pending = b""
        self.version = str(self._answer("ready", lambda done: None, START_SECONDS)["blender"])

    def _stop(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.process = None

    def _ask(self, request: dict[str, Any], kind: str, beat: Beat) -> dict[str, Any]:
        assert self.process and self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # the answer will say why
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        return self._answer(kind, beat)

    def _answer(self, kind: str, beat: Beat, seconds: float | None = None) -> dict[str, Any]:
        """The worker's next message of `kind`; beats before it are passed on. A fault or an end is raised."""
        for message in self._messages(seconds):
            if "beat" in message:
                beat(message["beat"])
            elif "fault" in message:
                reason = Reason(message["fault"]["reason"])
                if reason.transient:
                    self._stop()  # whatever state it is in, the next object gets a fresh one
                raise RenderFault(reason, message["fault"]["message"])
            else:
                answer: dict[str, Any] = message[kind]
                return answer
        raise self._crashed()

    def _messages(self, seconds: float | None) -> Iterator[dict[str, Any]]:
        """Lines of the worker until its end; TIMEOUT where one takes longer than `seconds`."""
        assert self.process and self.process.stdout
        limit = None if seconds is None else time.monotonic() + seconds
        descriptor = self.process.stdout.fileno()
        while True:
            while b"\n" in self._pending:
                line, self._pending = self._pending.split(b"\n", 1)
                yield json.loads(line)
            left = None if limit is None else max(0.0, limit - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                self._stop()
                raise RenderFault(Reason.TIMEOUT, f"Blender did not start within {seconds:.0f} s{self._tail()}")
            received = os.read(descriptor, 1 << 16)
            if not received:
                return
            self._pending += received

    def _crashed(self) -> RenderFault:
        assert self.process
        code = self.process.wait()
        self._stop()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return RenderFault(Reason.CRASH, f"the Blender worker {how}{self._tail()}")

    def _tail(self) -> str:
        log = Path(self.folder.name) / "log"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return "".join(f"; {line}" for line in lines[-TAIL_LINES:])

    @contextlib.contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        """Faults raised inside name the file."""
        try:
            yield
        except RenderFault as fault:
            if str(path) in str(fault):
                raise
            raise RenderFault(fault.reason, f"'{path}': {fault}") from fault

    def _array(self, name: str) -> np.ndarray:
        file = Path(self.folder.name) / f"{name}.npy"
        array: np.ndarray = np.load(file)
        file.unlink()
        return array


def _display(rgba: Tensor) -> Tensor:
    """Premultiplied linear light [...,4] to straight-alpha sRGB, colour 0 where alpha is 0."""
    alpha = rgba[..., 3:].clamp(0, 1)
    straight = images.linear_to_srgb(rgba[..., :3] / alpha.clamp_min(1e-6))
    return torch.cat([straight * (alpha > 0), alpha], dim=-1)


def _overexposed(rgba: Tensor) -> float:
    """Share of the covered pixels whose linear light exceeds white in a channel."""
    covered = rgba[rgba[..., 3] > 0.5]
    if len(covered) == 0:
        return 0.0
    return float((covered[:, :3].amax(dim=-1) > OVEREXPOSED * covered[:, 3]).float().mean())


def _opacity(alpha: Tensor, depth: Tensor) -> float:
    """Mean alpha [v,h,w] inside the silhouette, one pixel from its rim, where it is the surfaces' own.

    A surface has a depth however translucent it is. An object without an inside (a wire) is taken as it is.
    """
    surface = (depth > 0).float()[:, None]
    inside = -F.max_pool2d(-surface, 3, stride=1, padding=1)[:, 0] > 0
    if not bool(inside.any()):
        return 1.0
    return float(alpha[inside].mean())
