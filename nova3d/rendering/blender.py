"""The Cycles engine: a client of the Blender worker, which has its own interpreter and stays alive between objects.

Worker and client share a process group, so that killing the group ends both. A worker whose client has died reads the
end of its requests and exits.
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
from nova3d.rendering.engine import EngineConfig, Rendered, ViewCallback, check_settings, mesh_facts
from nova3d.rendering.meshes import Mesh, load_mesh
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.transforms import cameras_to_transforms

WORKER = Path(__file__).with_name("blender_worker")
START_SECONDS = 120.0  # importing bpy takes half a second; a cold disk or a GPU driver's start much longer
TAIL_LINES = 8  # of Blender's own messages, in the error of a crash
OVEREXPOSED = 1.05  # linear light: above what noise and highlights add to plain white
_FINISH = ("metallic", "roughness", "emission", "transmission", "unlit", "normal_scale")
_MAPS = ("metallic_roughness_map", "emission_map", "normal_map")
_PYTHON_VARIABLE = "NOVA3D_BLENDER_PYTHON"
_SETTINGS = ("device", "light", "samples", "denoise", "threads", "normals")


def find_interpreter(config: EngineConfig) -> Path:
    """The interpreter that has bpy.

    Args:
        config: the settings; the environment variable NOVA3D_BLENDER_PYTHON takes precedence over `python`.

    Returns:
        Its file. Whether bpy can be imported shows when it is started.

    Raises:
        InputError: where there is none.
    """
    python = Path(os.environ.get(_PYTHON_VARIABLE) or config.python)
    if not python.is_file():
        raise InputError(f"no Blender interpreter at '{python}': {interpreter_remedy()}")
    return python


def interpreter_remedy() -> str:
    """What to do where the interpreter is missing or has no bpy: engine.python counts only without the variable."""
    if os.environ.get(_PYTHON_VARIABLE):
        return f"correct or unset the environment variable {_PYTHON_VARIABLE}"
    return "run `make blender`, or set engine.python"


class BlenderEngine:
    """Path-traced pictures of the mesh that `load_mesh` reads, with its translucency, emission and finish.

    Args:
        config: the settings.
        normalise: centre every mesh and scale its longest side to 1.

    Raises:
        InputError: where the interpreter is missing.
        RenderError: DEVICE, where Cycles lacks the device.
    """

    def __init__(self, config: EngineConfig, normalise: bool = True):
        check_settings(config, devices=("cpu", "cuda", "optix"))
        self.config, self.normalise = config, normalise
        self.python = find_interpreter(config)
        self.folder = tempfile.TemporaryDirectory(prefix="nova3d-blender-")
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def describe(self) -> dict[str, Any]:
        """Return name, Blender's version and the settings that change pixels."""
        keys = ("device", "light", "samples", "denoise", "normals")
        return {"name": "blender", "version": self.version} | {k: getattr(self.config, k) for k in keys}

    def render(self, path: Path, cameras: Cameras, on_view: ViewCallback) -> Rendered:
        """Render one mesh file; see `Engine.render`. After a CRASH of the worker the next call starts another."""
        mesh = load_mesh(path, self.config.limits(), finish=True)
        if self.process is None:
            self._start()
        square = bool((cameras.intrinsics[:, 0] - cameras.intrinsics[:, 1]).abs().max() < 1e-3)
        if not square and not self.version.startswith("4."):
            raise InputError(f"Blender {self.version} cannot save pictures of pixels that are not square; use bpy 4.5")
        (Path(self.folder.name) / "log").write_bytes(b"")  # only this object's messages
        with self._name_in_errors(path):
            scale, centre = mesh.normalisation() if self.normalise else (1.0, torch.zeros(3))
            materials = self._write_mesh(mesh.placed(scale, centre))
            request = {"materials": materials, "cameras": cameras_to_transforms(cameras)}
            self._request({"render": request}, "rendered", on_view)
        rgba, normals, depth = (torch.from_numpy(self._load_array(name)) for name in ("rgba", "normals", "depth"))
        if not bool((rgba[..., 3] > 0).any()):
            raise RenderError(Reason.BLANK_RENDER, f"'{path}': nothing of it is in any view")
        facts = mesh_facts(mesh) | {
            "scale": scale,
            "centre": centre.tolist(),
            "opacity": _opacity(rgba[..., 3], depth),
            "translucency": "blended",
            "overexposed": _overexposed_share(rgba),
        }
        covered = (rgba[..., 3:] > 0).float()
        normals = F.normalize(normals, dim=-1) * covered
        return Rendered(_to_straight_srgb(rgba), normals, depth * covered[..., 0], facts, mesh)

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
        self.version = str(self._wait_for("ready", lambda views: None, START_SECONDS)["blender"])

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

    def _request(self, request: dict[str, Any], kind: str, on_view: ViewCallback) -> dict[str, Any]:
        assert self.process and self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # the answer will say why
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        return self._wait_for(kind, on_view)

    def _wait_for(self, kind: str, on_view: ViewCallback, seconds: float | None = None) -> dict[str, Any]:
        """Return the worker's next message of `kind`, reporting views until then. Raises RenderError for a fault."""
        for message in self._messages(seconds):
            if "beat" in message:
                on_view(message["beat"])
            elif "fault" in message:
                reason = Reason(message["fault"]["reason"])
                if reason.transient:
                    self._stop()  # whatever state it is in, the next object gets a fresh one
                raise RenderError(reason, message["fault"]["message"])
            else:
                answer: dict[str, Any] = message[kind]
                return answer
        raise self._crash_error()

    def _messages(self, seconds: float | None) -> Iterator[dict[str, Any]]:
        """Yield the worker's messages until its end. Raises TIMEOUT where one takes longer than `seconds`."""
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
                raise RenderError(Reason.TIMEOUT, f"Blender did not start within {seconds:.0f} s{self._log_tail()}")
            received = os.read(descriptor, 1 << 16)
            if not received:
                return
            self._pending += received

    def _crash_error(self) -> RenderError:
        assert self.process
        code = self.process.wait()
        self._stop()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return RenderError(Reason.CRASH, f"the Blender worker {how}{self._log_tail()}")

    def _log_tail(self) -> str:
        log = Path(self.folder.name) / "log"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return "".join(f"; {line}" for line in lines[-TAIL_LINES:])

    @contextlib.contextmanager
    def _name_in_errors(self, path: Path) -> Iterator[None]:
        """Put the file's name into the errors that the block raises."""
        try:
            yield
        except RenderError as fault:
            if str(path) in str(fault):
                raise
            raise RenderError(fault.reason, f"'{path}': {fault}") from fault

    def _write_mesh(self, mesh: Mesh) -> list[dict[str, Any]]:
        """Write the mesh's arrays to the folder; return its materials as the worker reads them."""
        arrays = {name: getattr(mesh, name).numpy() for name in ("vertices", "faces", "normals", "uv", "face_material")}
        opacity = torch.ones(len(mesh.vertices)) if mesh.opacity is None else mesh.opacity
        arrays["colours"] = torch.cat([images.srgb_to_linear(mesh.colours), opacity[:, None]], dim=1).numpy()
        one_sided = torch.zeros(len(mesh.faces), dtype=torch.bool) if mesh.one_sided is None else mesh.one_sided
        arrays["one_sided"] = one_sided.numpy()
        materials = []
        for index, (texture, alpha, sampler) in enumerate(zip(mesh.textures, mesh.alphas, mesh.samplers, strict=True)):
            values = torch.ones_like(texture[..., :1]) if alpha is None else alpha.values.expand_as(texture[..., :1])
            arrays[f"texture{index}"] = images.to_uint8(torch.cat([texture, values], dim=-1))
            material: dict[str, Any] = {"wrap": sampler.wrap, "nearest": sampler.nearest, "alpha": None, "finish": None}
            if alpha is not None:
                material["alpha"] = {"cutoff": alpha.cutoff, "blended": alpha.blended}
            finish = mesh.finishes[index]
            if finish is not None:
                material["finish"] = {name: getattr(finish, name) for name in _FINISH}
                for name in _MAPS:
                    picture = getattr(finish, name)
                    material["finish"][name] = picture is not None
                    if picture is not None:
                        arrays[f"{name}{index}"] = picture
            materials.append(material)
        for name, array in arrays.items():
            np.save(Path(self.folder.name) / f"{name}.npy", array)
        return materials

    def _load_array(self, name: str) -> np.ndarray:
        file = Path(self.folder.name) / f"{name}.npy"
        array: np.ndarray = np.load(file)
        file.unlink()
        return array


def _to_straight_srgb(rgba: Tensor) -> Tensor:
    """Convert premultiplied linear light [...,4] to straight-alpha sRGB, colour 0 where alpha is 0."""
    alpha = rgba[..., 3:].clamp(0, 1)
    straight = images.linear_to_srgb(rgba[..., :3] / alpha.clamp_min(1e-6))
    return torch.cat([straight * (alpha > 0), alpha], dim=-1)


def _overexposed_share(rgba: Tensor) -> float:
    """Return the share of the covered pixels whose linear light exceeds white in a channel."""
    covered = rgba[rgba[..., 3] > 0.5]
    if len(covered) == 0:
        return 0.0
    return float((covered[:, :3].amax(dim=-1) > OVEREXPOSED * covered[:, 3]).float().mean())


def _opacity(alpha: Tensor, depth: Tensor) -> float:
    """Return the mean alpha [v,h,w] of the surfaces, measured inside the silhouette, one pixel from its rim.

    A surface has a depth however translucent it is. An object without an inside (a wire) counts as opaque.
    """
    surface = (depth > 0).float()[:, None]
    inside = -F.max_pool2d(-surface, 3, stride=1, padding=1)[:, 0] > 0
    if not bool(inside.any()):
        return 1.0
    return float(alpha[inside].mean())
