"""Writing meshes: GLB with a PBR base-colour texture, OBJ with its material, PLY with vertex colours, STL."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import trimesh
from PIL import Image
from torch import Tensor

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.transforms import cameras_to_transforms, write_transforms
from nova3d.utils.files import replacing, writable_folder, write_text

SUFFIXES = (".glb", ".obj", ".ply", ".stl")


def check_output(path: str | Path) -> Path:
    """Check, before the long work, that a mesh can be written; its folder is made.

    Args:
        path: the file, with a suffix of SUFFIXES.

    Returns:
        The absolute path.

    Raises:
        InputError: where the suffix is unknown, the path is a folder or its folder cannot be written.
    """
    path = Path(path).absolute()
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"output '{path.name}' must end in one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"output '{path}' is a folder; give a file name such as '{path / 'mesh.glb'}'")
    writable_folder(path.parent)
    return path


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
        path: the file, with a suffix of SUFFIXES.
        mesh: textured, for GLB and OBJ.
        solid: with vertex colours and no doubled vertices, for PLY and STL.
        record: provenance for a GLB's extras.

    Returns:
        The absolute path.

    Raises:
        InputError: where the file cannot be written.
    """
    path = check_output(path)
    try:
        match path.suffix.lower():
            case ".glb":
                _write(path, _glb(mesh, record))
            case ".ply":
                _write(path, trimesh.exchange.ply.export_ply(solid))
            case ".stl":
                _write(path, trimesh.exchange.stl.export_stl(solid))
            case ".obj":
                _write_obj(path, mesh)
    except OSError as error:
        raise InputError(f"cannot write '{path}': {error.strerror or error}") from error
    return path


def maps_folder(mesh_path: str | Path) -> Path:
    """The folder beside a mesh for what is not the mesh: NAME_fusion."""
    mesh_path = Path(mesh_path).absolute()
    return mesh_path.with_name(f"{mesh_path.stem}_fusion")


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
    try:
        (folder / "conflict").mkdir(parents=True, exist_ok=True)
        for index, (frame, picture) in enumerate(zip(transforms["frames"], conflict, strict=True)):
            frame["conflict_path"] = f"conflict/{index:03d}.png"
            images.save_image(folder / frame["conflict_path"], picture)
        write_transforms(folder / "transforms.json", transforms)
    except OSError as error:
        raise InputError(f"cannot write to '{folder}': {error.strerror or error}") from error
    return folder


def _glb(mesh: trimesh.Trimesh, record: Mapping[str, Any] | None) -> bytes:
    if isinstance(mesh.visual, trimesh.visual.ColorVisuals):
        # glTF's COLOR_0 is linear, but trimesh writes colours as they are.
        srgb = torch.from_numpy(np.asarray(mesh.visual.vertex_colors)[:, :3] / 255)
        mesh = coloured(mesh, images.srgb_to_linear(srgb).numpy())
    extras = json.loads(json.dumps(dict(record or {}), default=str))

    def add_extras(tree: dict[str, Any]) -> None:
        tree["asset"]["extras"] = {"nova3d": extras}

    data = trimesh.exchange.gltf.export_glb(mesh.scene(), include_normals=True, tree_postprocessor=add_extras)
    return bytes(data)


def _write_obj(path: Path, mesh: trimesh.Trimesh) -> None:
    if isinstance(mesh.visual, trimesh.visual.TextureVisuals):
        # MTL multiplies the map by Kd, which trimesh sets to 0.4. White shows the texture as it is.
        white, black = [255] * 4, [0, 0, 0, 255]
        material = trimesh.visual.material.SimpleMaterial(
            image=cast(Any, mesh.visual.material).baseColorTexture,
            ambient=white,
            diffuse=white,
            specular=black,
            glossiness=0.0,
        )
        normals, visual = mesh.vertex_normals, trimesh.visual.TextureVisuals(uv=mesh.visual.uv, material=material)
        mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=normals, visual=visual, process=False)
    text, files = trimesh.exchange.obj.export_obj(
        mesh, include_normals=True, return_texture=True, mtl_name=f"{path.stem}.mtl"
    )
    names = {name: f"{path.stem}{Path(name).suffix}" for name in files if not name.endswith(".mtl")}
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        for old, new in names.items():
            data = data.replace(old.encode(), new.encode()) if name.endswith(".mtl") else data
        _write(path.parent / names.get(name, name), data)
    write_text(path, text)


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as aside:
        aside.write_bytes(data)
