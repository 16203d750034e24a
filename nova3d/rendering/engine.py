"""The protocol that every render engine follows, and the portable one.

An engine runs inside one worker process, one object at a time. Everything it returns is in the project's frames: world
= object frame (+Y up, +Z front), object centred, longest side 1.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import torch
from torch import Tensor

from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.rendering.mesh_files import inspect_file
from nova3d.rendering.meshes import load_mesh
from nova3d.rendering.raster import Light, rasterize
from nova3d.rendering.reasons import Reason, RenderFault

Beat = Callable[[int], None]  # called with the number of views done; the pool's heartbeat
ENGINES = ("raster", "blender")
DEVICES = {"raster": ("cpu", "cuda"), "blender": ("cpu", "cuda", "optix")}
LIGHTS = get_args(Light)
NORMALS = ("geometry", "shading")


@dataclass
class EngineConfig:
    """Which engine renders, and how. Engines ignore the other engine's settings.

    name: "raster", "blender", or "package.module:factory" of another package: a callable that takes this config and
    returns an Engine. device: "cpu", "cuda" or (blender) "optix". light: "studio" or "flat" (the base colour
    under uniform white light). supersample: raster's samples per pixel and axis. samples, denoise: Cycles' samples per
    pixel, and OIDN (fast prefilter, fast quality). threads: 0 lets the engine choose. python: the interpreter that has
    bpy, made by `make blender`. normals: "geometry", or "shading" with normal maps (blender).
    """

    name: str = "raster"
    device: str = "cpu"
    light: str = "studio"
    supersample: int = 2
    samples: int = 64
    denoise: bool = False
    threads: int = 1
    python: str = ".venv-blender/bin/python"
    normals: str = "geometry"


@dataclass(frozen=True)
class Rendered:
    """Pictures of one object.

    rgba [v,h,w,4] float32 in [0,1]: straight-alpha sRGB, colour 0 where alpha is 0. normals [v,h,w,3] float32: unit
    world normals facing the camera, zero on background. depth [v,h,w] float32: along the viewing axis in world units, 0
    on background. facts: what the engine learnt of the object, JSON values: triangles, materials, textures,
    has_normals, animations, scale and centre (object = (file - centre) * scale), opacity (mean over the covered pixels
    of the surface's own alpha, 1 = opaque), overexposed (share of covered pixels clipped at white), missing_textures.
    """

    rgba: Tensor
    normals: Tensor
    depth: Tensor
    facts: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A renderer with its settings; `close` ends whatever it keeps running."""

    def describe(self) -> dict[str, Any]:
        """Name, version, device and the settings that change pixels: goes into every object's JSON."""
        ...

    def render(self, path: Path, cameras: Cameras, beat: Beat) -> Rendered:
        """Render the mesh at `path`. Raises RenderFault with the reason where it cannot be."""
        ...

    def close(self) -> None: ...


class RasterEngine:
    """The z-buffer of `raster.py` on the CPU or one CUDA device.

    It draws the mesh as its nodes place it (skins and animations are counted, not applied) and translucent surfaces
    opaque (`opacity` measures them); emission is not drawn, so nothing is ever overexposed.
    """

    def __init__(self, config: EngineConfig, normalise: bool = True):
        self.config, self.normalise = config, normalise
        if config.device.startswith("cuda") and not torch.cuda.is_available():
            raise RenderFault(Reason.DEVICE, f"device '{config.device}' was asked for, but torch finds no CUDA GPU")

    def describe(self) -> dict[str, Any]:
        keys = ("device", "light", "supersample")
        return {"name": "raster", "version": torch.__version__} | {k: getattr(self.config, k) for k in keys}

    def render(self, path: Path, cameras: Cameras, beat: Beat) -> Rendered:
        """Load and draw the mesh at `path`; pictures come back on the CPU."""
        try:
            return self._render(path, cameras, beat)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise RenderFault(Reason.OUT_OF_MEMORY, f"'{path}': {error}") from error

    def _render(self, path: Path, cameras: Cameras, beat: Beat) -> Rendered:
        mesh, file = load_mesh(path), inspect_file(path)
        scale, centre = mesh.normalisation() if self.normalise else (1.0, torch.zeros(3))
        placed = (mesh.placed(scale, centre) if self.normalise else mesh).to(self.config.device)
        try:
            raster = rasterize(placed, cameras, self.config.supersample, cast(Light, self.config.light), beat)
        except InputError as error:
            raise RenderFault(Reason.BLANK_RENDER, f"'{path}': {error}") from error
        if raster.rgba.device.type != torch.device(self.config.device).type:
            raise RenderFault(Reason.DEVICE, f"'{path}' was drawn on {raster.rgba.device}, not {self.config.device}")
        facts = {
            "triangles": len(mesh.faces),
            "materials": len(mesh.textures),
            "textures": sum(texture.shape[:2] != (1, 1) for texture in mesh.textures),
            "has_normals": mesh.has_normals,
            "animations": file.animations,
            "skins": file.skins,
            "pose": "nodes",
            "scale": scale,
            "centre": centre.tolist(),
            "opacity": raster.opacity,
            "translucency": "drawn opaque",
            "overexposed": 0.0,  # irradiance stays below 1
            "missing_textures": file.missing_textures,
        }
        return Rendered(raster.rgba.cpu(), raster.normals.cpu(), raster.depth.cpu(), facts)

    def close(self) -> None:
        """Nothing is kept running."""


def make_engine(config: EngineConfig, normalise: bool = True) -> Engine:
    """The engine that `config` names, ready to render; `normalise=False` takes files to be in the object frame.

    Raises InputError, in one line with the valid names, for an unknown name, device, light or kind of normals, and
    RenderFault (DEVICE) where the device is not there.
    """
    if ":" in config.name:
        return _import_engine(config)
    if config.name not in ENGINES:
        raise InputError(f"render engine '{config.name}' is not one of {', '.join(ENGINES)}, or package.module:factory")
    device = config.device.split(":")[0] if config.name == "raster" else config.device
    for key, value, valid in (
        ("device", device, DEVICES[config.name]),
        ("light", config.light, LIGHTS),
        ("normals", config.normals, NORMALS),
    ):
        if value not in valid:
            raise InputError(f"{key} '{value}' of the render engine '{config.name}' is not one of {', '.join(valid)}")
    if min(config.supersample, config.samples) < 1 or config.threads < 0:
        raise InputError("the render engine needs supersample and samples of at least 1, and threads of at least 0")
    if config.name == "raster":
        return RasterEngine(config, normalise)
    from nova3d.rendering.blender import BlenderEngine  # imports this module

    return BlenderEngine(config, normalise)


def _import_engine(config: EngineConfig) -> Engine:
    module, _, factory = config.name.partition(":")
    try:
        return cast(Engine, getattr(importlib.import_module(module), factory)(config))
    except (ImportError, AttributeError) as error:
        raise InputError(f"render engine '{config.name}' cannot be imported: {error}") from error
