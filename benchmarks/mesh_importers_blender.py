"""Blender's half of mesh_importers.py: import a file with Blender's own importer, draw its base colour.

JSON lines on stdin, one answer each on stdout: {} with rgba.npy written, or {"fault": one line}.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nova3d/rendering/blender_worker"))
import bpy
import camera
import render_setup
from common import TO_BLENDER
from mathutils import Vector

SETTINGS = {"device": "cpu", "threads": 1, "denoise": False}
FAINT = 1 / 255  # alpha below this is a hole; translucency is drawn opaque, as nova3d's raster engine does


def main() -> None:
    """Answer requests until the end of stdin."""
    folder = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Blender's own messages
    for line in sys.stdin:
        request = json.loads(line)
        try:
            draw(request, folder)
            answer = {}
        except Exception as error:
            lines = [part for part in str(error).splitlines() if part.strip()]
            answer = {"fault": f"{type(error).__name__}: {lines[-1] if lines else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def draw(request: dict[str, Any], folder: Path) -> None:
    """Import, place and draw one file."""
    render_setup.reset(SETTINGS | {"samples": request["samples"]})
    scene = bpy.context.scene
    scene.cycles.max_bounces, scene.cycles.transparent_max_bounces = 0, 64
    load(Path(request["path"]))
    scene.frame_set(0)
    # For a name without an MTL file Blender makes a grey material, which the file does not ask for.
    path = Path(request["path"])
    defined = path.suffix.lower() != ".obj" or b"mtllib" in path.read_bytes()
    for mesh in bpy.data.meshes:
        plain(mesh, defined)
    for material in bpy.data.materials:
        if material.node_tree:
            show_base_colour(material.node_tree)
    place(request["scale"], request["centre"])
    camera.render(request["cameras"], folder, lambda done: None)


def load(path: Path) -> None:
    """Import with +Y up and +Z to the front where the format names no axes."""
    name, axes = str(path), {"forward_axis": "NEGATIVE_Z", "up_axis": "Y"}
    match path.suffix.lower():
        case ".glb" | ".gltf":
            bpy.ops.import_scene.gltf(filepath=name, disable_bone_shape=True, import_webp_texture=True)
        case ".obj":
            bpy.ops.wm.obj_import(filepath=name, **axes)
        case ".ply":
            bpy.ops.wm.ply_import(filepath=name, **axes)
        case ".stl":
            bpy.ops.wm.stl_import(filepath=name, **axes)
        case other:
            raise ValueError(f"no importer of {other}")
    if not any(mesh.polygons for mesh in bpy.data.meshes):
        raise ValueError("no faces were imported")


def plain(mesh: Any, defined: bool) -> None:
    """Give faces whose file defines no material white times their vertex colours, if any."""
    if not mesh.polygons or (defined and any(mesh.materials)):
        return
    material = bpy.data.materials.new("plain")
    material.use_nodes = True
    tree = material.node_tree
    shader = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
    shader.inputs["Base Color"].default_value = (1, 1, 1, 1)
    if mesh.color_attributes:
        colour = tree.nodes.new("ShaderNodeVertexColor")
        colour.layer_name = mesh.color_attributes[0].name
        tree.links.new(colour.outputs["Color"], shader.inputs["Base Color"])
    mesh.materials.clear()
    mesh.materials.append(material)
    mesh.polygons.foreach_set("material_index", [0] * len(mesh.polygons))


def show_base_colour(tree: Any) -> None:
    """Replace the surface by an emission of its base colour, with holes where alpha is faint."""
    shader = next((n for n in tree.nodes if n.type == "BSDF_PRINCIPLED"), None)
    if shader is None:  # an unlit material is an emission already
        return
    output = next(n for n in tree.nodes if n.type == "OUTPUT_MATERIAL")
    glow, clear = tree.nodes.new("ShaderNodeEmission"), tree.nodes.new("ShaderNodeBsdfTransparent")
    mix, visible = tree.nodes.new("ShaderNodeMixShader"), tree.nodes.new("ShaderNodeMath")
    visible.operation, visible.inputs[1].default_value = "GREATER_THAN", FAINT
    copy(tree, shader.inputs["Base Color"], glow.inputs["Color"])
    copy(tree, shader.inputs["Alpha"], visible.inputs[0])
    tree.links.new(visible.outputs[0], mix.inputs[0])
    tree.links.new(clear.outputs[0], mix.inputs[1])
    tree.links.new(glow.outputs[0], mix.inputs[2])
    tree.links.new(mix.outputs[0], output.inputs["Surface"])


def copy(tree: Any, source: Any, target: Any) -> None:
    """Give an input the link or the value of another."""
    target.default_value = source.default_value
    for link in source.links:
        tree.links.new(link.from_socket, target)


def place(scale: float, centre: list[float]) -> None:
    """Parent the roots to one empty that moves `centre` to the origin and scales by `scale`."""
    scene = bpy.context.scene
    frame = bpy.data.objects.new("frame", None)
    scene.collection.objects.link(frame)
    for root in [o for o in scene.objects if o.parent is None and o is not frame]:
        root.parent = frame
    frame.scale = (scale, scale, scale)
    frame.location = -scale * (TO_BLENDER @ Vector(centre))


if __name__ == "__main__":
    main()
