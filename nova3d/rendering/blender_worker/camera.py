"""Rendering views in Blender: sets the camera of each and reads its passes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from common import TO_BLENDER, Fault
from mathutils import Matrix

NO_DEPTH = 1e9  # Cycles writes 1e10 where a ray meets nothing


def render(cameras: dict[str, Any], folder: Path, beat: Callable[[int], None]) -> int:
    """Render every frame of `cameras` (as transforms.json) into rgba.npy, normals.npy, depth.npy; return how many."""
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = cameras["w"], cameras["h"]
    picture = folder / "view.exr"
    scene.render.filepath = str(picture)
    views = []
    for index, frame in enumerate(cameras["frames"]):
        set_camera(scene, cameras | frame)
        bpy.ops.render.render(write_still=True)
        views.append(read_passes(picture))
        beat(index + 1)
    picture.unlink()
    for name, arrays in zip(("rgba", "normals", "depth"), zip(*views, strict=True), strict=True):
        np.save(folder / f"{name}.npy", np.stack(arrays))
    return len(views)


def set_camera(scene: Any, camera: dict[str, Any]) -> None:
    if scene.camera is None:
        scene.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        scene.collection.objects.link(scene.camera)
    data, width, height = scene.camera.data, camera["w"], camera["h"]
    data.sensor_fit, data.clip_start, data.clip_end = "HORIZONTAL", 1e-3, 1e6
    if camera["camera_model"] == "ORTHOGRAPHIC":
        data.type, data.ortho_scale = "ORTHO", width / camera["fl_x"]
    else:
        data.type, data.lens = "PERSP", camera["fl_x"] / width * data.sensor_width
    aspect = camera["fl_x"] / camera["fl_y"]  # height of a pixel over its width
    scene.render.pixel_aspect_x, scene.render.pixel_aspect_y = max(1, 1 / aspect), max(1, aspect)
    data.shift_x = (width / 2 - camera["cx"]) / width
    data.shift_y = (camera["cy"] - height / 2) * aspect / width
    scene.camera.matrix_world = TO_BLENDER @ Matrix(camera["transform_matrix"])


def read_passes(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read rgba, world normals (glTF's frame) and depth of a multilayer EXR: one part in Blender 4, several in 5."""
    oiio = open_image_io()
    channels: dict[str, np.ndarray] = {}
    source, part = oiio.ImageInput.open(str(path)), 0
    while source and source.seek_subimage(part, 0):
        names = source.spec(part).channelnames
        pixels = source.read_image(part, 0, 0, len(names), "float")
        channels |= {name.split(".", 1)[1]: pixels[..., k] for k, name in enumerate(names)}
        part += 1
    if source:
        source.close()
    wanted = [f"Combined.{c}" for c in "RGBA"], [f"Normal.{c}" for c in "XYZ"]
    if not {*wanted[0], *wanted[1], "Depth.Z"} <= channels.keys():
        raise Fault("crash", f"Blender wrote the passes {sorted(channels)} only")
    rgba, (x, y, z) = np.stack([channels[k] for k in wanted[0]], -1), (channels[k] for k in wanted[1])
    depth = channels["Depth.Z"]
    return rgba, np.stack([x, z, -y], -1), np.where(depth < NO_DEPTH, depth, 0).astype(np.float32)


def open_image_io() -> Any:
    """Import Blender's own OpenImageIO, which the module form of Blender ships but does not put on the path."""
    libraries = Path(bpy.utils.resource_path("LOCAL")) / "python/lib"
    folder = str(libraries / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages")
    if folder not in sys.path:
        sys.path.append(folder)
    import OpenImageIO

    return OpenImageIO
