"""The protocol of a render engine, its settings and the registry of engines.

An engine runs inside one worker process and renders one object at a time. What it returns is in the project's frames:
world = object frame (+Y up, +Z front), the object centred, its longest bounding-box side 1.

To add an engine, write a module with a class that follows `Engine` and add one line to `ENGINES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast, get_args

from nova3d.choices import Light, RenderedNormals
from nova3d.config import Sentinel
from nova3d.errors import InputError
from nova3d.rendering.file_access import LIMITS, Limits
from nova3d.utils import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from nova3d.cameras import Cameras
    from nova3d.rendering.meshes import Mesh

# Name: "module:factory". Modules are imported when an engine is made, so that no engine needs another's packages.
ENGINES = {
    "raster": "nova3d.rendering.raster:RasterEngine",
    "blender": "nova3d.rendering.blender:BlenderEngine",
}

ViewCallback = Callable[[int], None]  # called with the number of views done


@dataclass
class EngineConfig:
    """Which engine renders, and how. Engines ignore the settings that are not theirs."""

    name: str = "raster"
    """raster, blender, or package.module:factory of another package; the factory takes this config and returns an
    Engine. The command line imports it with `--allow-code` only."""
    device: str = "cpu"
    """cpu, cuda, or (blender) optix. An engine of another package may have others."""
    light: Light = "studio"
    """studio, or flat: the base colour under uniform white light."""
    supersample: int = 2
    """Samples per pixel and axis (raster)."""
    samples: int = 64
    """Samples per pixel (blender)."""
    denoise: bool = False
    """Denoise with OIDN, fast prefilter and fast quality (blender)."""
    threads: Annotated[int | None, Sentinel(0)] = 1
    """CPU threads; null lets the engine choose."""
    python: str = ".venv-blender/bin/python"
    """The interpreter that has bpy; `make blender` makes it (blender)."""
    normals: RenderedNormals = "geometry"
    """geometry, or shading: with normal maps (blender)."""
    max_triangles: int = LIMITS.triangles
    """Refuse meshes of more triangles, instances counted."""
    max_texture_pixels: int = LIMITS.texture_pixels
    """Refuse textures of more pixels."""

    def limits(self) -> Limits:
        """What a mesh file may cost."""
        return Limits(self.max_triangles, self.max_texture_pixels)


@dataclass(frozen=True)
class Rendered:
    """Pictures of one object.

    Attributes:
        rgba: [v,h,w,4] float32 in [0,1], straight-alpha sRGB; colour is 0 where alpha is 0.
        normals: [v,h,w,3] float32, unit world normals facing the camera; zero on background.
        depth: [v,h,w] float32, along the viewing axis in world units; 0 on background.
        facts: properties of the object, JSON values: those of `mesh_facts`, scale and centre
            (object = (file - centre) * scale), opacity (mean alpha of the surface over the covered pixels, 1 = opaque),
            overexposed (share of covered pixels clipped at white).
        mesh: the mesh as `load_mesh` read it, before scaling; None where the engine reads files in another way.
    """

    rgba: "Tensor"
    normals: "Tensor"
    depth: "Tensor"
    facts: dict[str, Any] = field(default_factory=dict)
    mesh: "Mesh | None" = None


def mesh_facts(mesh: "Mesh") -> dict[str, Any]:
    """The facts that every engine reports of a mesh, JSON values.

    Args:
        mesh: as `load_mesh` read it.

    Returns:
        triangles, materials, textures, has_normals, animations, skins, pose (how an animated file stands),
        inverted_hull (share of the faces that are an outline), missing_textures (how many).
    """
    return {
        "triangles": len(mesh.faces),
        "materials": len(mesh.textures),
        "textures": sum(texture.shape[:2] != (1, 1) for texture in mesh.textures),
        "has_normals": mesh.has_normals,
        "animations": mesh.file.animations,
        "skins": mesh.file.skins,
        "pose": "frame 0" if mesh.file.animations else "nodes",
        "inverted_hull": 0.0 if mesh.one_sided is None else float(mesh.one_sided.float().mean()),
        "missing_textures": len(mesh.file.missing_textures),
    }


class Engine(Protocol):
    """A renderer with its settings."""

    def describe(self) -> dict[str, Any]:
        """Return name, version, device and the settings that change pixels, for the JSON of every object."""
        ...

    def render(self, path: Path, cameras: "Cameras", on_view: ViewCallback, /) -> Rendered:
        """Render one mesh file.

        Args:
            path: the mesh file.
            cameras: v cameras.
            on_view: called after every view with the number of views done; a render job takes it as a heartbeat.

        Returns:
            The pictures, on the CPU.

        Raises:
            RenderError: with the reason, where the object cannot be rendered.
        """
        ...

    def close(self) -> None:
        """End whatever the engine keeps running."""
        ...


def make_engine(config: EngineConfig, normalise: bool = True) -> Engine:
    """Make the engine that a config names.

    Args:
        config: the settings; `name` is a key of ENGINES or "package.module:factory".
        normalise: centre every mesh and scale its longest side to 1; False takes files to be in the object frame.

    Returns:
        An engine that is ready to render.

    Raises:
        InputError: for an unknown name, device, light or kind of normals, with the valid values.
        RenderError: DEVICE, where the device is not there.
    """
    target = ENGINES.get(config.name, config.name)
    if ":" not in target:
        raise InputError(f"render engine '{config.name}' is not one of {', '.join(ENGINES)}, or package.module:factory")
    try:
        factory = lazy.resolve(target)
    except (ImportError, AttributeError) as error:
        raise InputError(f"render engine '{config.name}' cannot be imported: {error}") from error
    return cast(Engine, factory(config) if normalise else factory(config, normalise=False))


def check_settings(config: EngineConfig, devices: Sequence[str]) -> None:
    """Check the settings that the built-in engines share.

    Args:
        config: the settings.
        devices: the devices that the engine can use.

    Raises:
        InputError: for a value that is not valid, with the valid ones.
    """
    for key, value, valid in (
        ("device", config.device, devices),
        ("light", config.light, get_args(Light)),
        ("normals", config.normals, get_args(RenderedNormals)),
    ):
        if value not in valid:
            raise InputError(f"{key} '{value}' of the render engine '{config.name}' is not one of {', '.join(valid)}")
    if min(config.supersample, config.samples) < 1 or (config.threads or 0) < 0:
        raise InputError("the render engine needs supersample and samples of at least 1, and threads of at least 0")
