"""Meshes that the tests of several rooms render."""

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

RADIUS = 0.5


def coloured_box(extents: tuple[float, float, float], seed: int = 0) -> trimesh.Trimesh:
    """A box whose six sides have different plain colours."""
    mesh = trimesh.creation.box(extents)
    mesh.unmerge_vertices()
    rng = np.random.default_rng(seed)
    sides = rng.integers(30, 226, (6, 3))
    side = [int(np.abs(n).argmax() * 2 + (n[np.abs(n).argmax()] > 0)) for n in mesh.face_normals]
    colours = np.repeat(sides[side], 3, axis=0)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.c_[colours, np.full(len(colours), 255)])
    return mesh


def write_sphere(path: Path) -> Path:
    """Write a finely divided sphere of radius 0.5 as GLB, with exact vertex normals."""
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=RADIUS)
    smooth = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.vertices / RADIUS, process=False)
    path.write_bytes(trimesh.exchange.gltf.export_glb(trimesh.Scene(smooth), include_normals=True))
    return path


def write_lopsided(path: Path) -> Path:
    """Write three coloured boxes without any symmetry, about the origin."""
    parts = [coloured_box((0.3, 0.8, 0.2), 0), coloured_box((0.5, 0.2, 0.2), 1), coloured_box((0.15, 0.15, 0.3), 2)]
    parts[1].apply_translation((0.2, 0.2, 0.05))
    parts[2].apply_translation((-0.05, -0.25, 0.2))
    trimesh.util.concatenate(parts).export(path)
    return path


def write_downloaded_scan(model: Path) -> None:
    """Write a folder as GSO is downloaded: a red Z-up box of 1 x 2 x 4 whose texture is not where it is looked for."""
    (model / "meshes").mkdir(parents=True)
    (model / "materials" / "textures").mkdir(parents=True)
    corners = "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 2) for z in (0, 4))
    faces = ("1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4")
    drawn = "".join("f " + " ".join(f"{corner}/1" for corner in face.split()) + "\n" for face in faces)
    (model / "meshes" / "model.obj").write_text(f"mtllib model.mtl\n{corners}vt 0.5 0.5\nusemtl m\n{drawn}")
    (model / "meshes" / "model.mtl").write_text("newmtl m\nmap_Kd texture.png\n")
    Image.new("RGB", (4, 4), (200, 10, 30)).save(model / "materials" / "textures" / "texture.png")
