"""Writing meshes: GLB with a PBR base-colour texture, OBJ with its material, PLY with vertex colours, STL."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from torch import Tensor

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.fusion.output import check_output, maps_folder
from nova3d.rendering.glb import glb_bytes
from nova3d.rendering.trimesh_files import part_of
from nova3d.transforms import cameras_to_transforms, write_transforms
from nova3d.utils.files import json_types, replacing, write_text, writing


def textured(
    vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, texture: np.ndarray, normals: np.ndarray
) -> trimesh.Trimesh:
    """A mesh with a base-colour texture.

    Args:
        vertices: [n,3] float64, world frame.
        faces: [f,3] int64.
        uv: [n,2] float64 in [0,1], origin at the lower left.
        texture: [h,w,3] uint8 sRGB.
        normals: [n,3] float64 unit vectors.

    Returns:
        The mesh with a PBR material.
    """
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(texture), metallicFactor=0.0, roughnessFactor=1.0
    )
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(vertices, faces, vertex_normals=normals, visual=visual, process=False)


def coloured(mesh: trimesh.Trimesh, colours: np.ndarray) -> trimesh.Trimesh:
    """A copy of a mesh of n vertices with vertex colours [n,3] float32 sRGB in [0,1]."""
    rgba = np.concatenate([(colours * 255).round().clip(0, 255), np.full((len(colours), 1), 255)], axis=1)
    return trimesh.Trimesh(
        mesh.vertices,
        mesh.faces,
        vertex_normals=mesh.vertex_normals,
        vertex_colors=rgba.astype(np.uint8),
        process=False,
    )


def write(
    path: str | Path, mesh: trimesh.Trimesh, solid: trimesh.Trimesh, record: Mapping[str, Any] | None = None
) -> Path:
    """Write a mesh by its suffix, aside first, so that an interrupted run leaves no broken file.

    Args:
        path: the file, with a suffix of `nova3d.fusion.output.SUFFIXES`.
        mesh: textured, for GLB and OBJ.
        solid: with vertex colours and no doubled vertices, for PLY and STL.
        record: provenance for a GLB's extras, which hold no command line and of absolute paths the last part alone.

    Returns:
        The absolute path.

    Raises:
        InputError: where the file cannot be written.
    """
    path = check_output(path)
    with writing(f"'{path}'"):
        match path.suffix.lower():
            case ".glb":
                _write(path, _glb(mesh, record))
            case ".ply":
                _write(path, trimesh.exchange.ply.export_ply(solid))
            case ".stl":
                _write(path, trimesh.exchange.stl.export_stl(solid))
            case ".obj":
                _write_obj(path, mesh)
    return path


def write_maps(mesh_path: str | Path, cameras: Cameras, conflict: Tensor) -> Path:
    """Write conflict maps and refined cameras to the folder `NAME_fusion` beside a mesh.

    Args:
        mesh_path: the mesh file.
        cameras: the refined cameras, for transforms.json.
        conflict: [v,h,w] float32 in [0,1], for conflict/000.png ... (grey, white is 1).

    Returns:
        The folder.

    Raises:
        InputError: where it cannot be written.
    """
    folder = maps_folder(mesh_path)
    transforms = cameras_to_transforms(cameras)
    with writing(f"to '{folder}'"):
        (folder / "conflict").mkdir(parents=True, exist_ok=True)
        for index, (frame, picture) in enumerate(zip(transforms["frames"], conflict, strict=True)):
            frame["conflict_path"] = f"conflict/{index:03d}.png"
            images.save_image(folder / frame["conflict_path"], picture)
        write_transforms(folder / "transforms.json", transforms)
    return folder


def _glb(mesh: trimesh.Trimesh, record: Mapping[str, Any] | None) -> bytes:
    part = part_of(mesh)
    # trimesh computes the normals of a mesh without. A closed surface needs no backs.
    material = replace(part.material, double_sided=False)
    part = replace(part, normals=np.asarray(mesh.vertex_normals), material=material)
    return glb_bytes([part], {"nova3d": _shipped(json_types(dict(record or {})))})


def _shipped(value: Any) -> Any:
    """A record for a file that is handed on: without the command line, and of absolute paths the last part alone."""
    if isinstance(value, dict):
        return {key: _shipped(item) for key, item in value.items() if key != "command"}
    if isinstance(value, list):
        return [_shipped(item) for item in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def _write_obj(path: Path, mesh: trimesh.Trimesh) -> None:
    """Write NAME.obj, and NAME.mtl and NAME.png where the mesh has a texture.

    A position is written once, however many corners of the texture meet there: readers then find the surface closed.
    """
    part = part_of(mesh)
    positions, place = np.unique(part.positions, axis=0, return_inverse=True)
    corners = part.faces.reshape(-1)
    columns = [place.reshape(-1)[corners] + 1]
    lines = [f"# nova3d, {len(part.faces)} faces"]
    colours = None
    if part.material.picture is not None:
        lines += [f"mtllib {path.stem}.mtl", "usemtl material"]
    elif isinstance(mesh.visual, trimesh.visual.ColorVisuals):
        colours = np.zeros((len(positions), 3))
        colours[place.reshape(-1)] = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
    lines += _rows("v", positions if colours is None else np.concatenate([positions, colours], axis=1))
    if part.uv is not None:
        uv, index = np.unique(part.uv, axis=0, return_inverse=True)
        lines += _rows("vt", uv)
        columns.append(index.reshape(-1)[corners] + 1)
    normals, index = np.unique(np.asarray(mesh.vertex_normals).round(6), axis=0, return_inverse=True)
    lines += _rows("vn", normals)
    columns.append(index.reshape(-1)[corners] + 1)
    between = "/" if part.uv is not None else "//"
    faces = np.stack(columns, axis=1).reshape(-1, 3, len(columns)).tolist()
    joined = ["f " + " ".join(_corner(corner, between) for corner in face) for face in faces]
    if part.material.picture is not None:
        images.save_image(path.with_suffix(".png"), part.material.picture[..., :3])
        # MTL multiplies the map by Kd. White shows the texture as it is.
        material = ["newmtl material", "Ka 1 1 1", "Kd 1 1 1", "Ks 0 0 0", "Ns 0", f"map_Kd {path.stem}.png"]
        write_text(path.with_suffix(".mtl"), "\n".join(material) + "\n")
    write_text(path, "\n".join(lines + joined) + "\n")


def _rows(key: str, values: np.ndarray) -> list[str]:
    return [f"{key} " + " ".join(f"{number:.8g}" for number in row) for row in values.tolist()]


def _corner(corner: list[int], between: str) -> str:
    return between.join(map(str, corner))


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as aside:
        aside.write_bytes(data)
