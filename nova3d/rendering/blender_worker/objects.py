"""Objects in Blender: import, checks, geometry as drawn, placement."""

from pathlib import Path
from typing import Any

import bpy
import numpy as np
from common import TO_BLENDER, Fault, last_line
from mathutils import Vector


def load(path: Path, folder: Path, normals: str) -> dict[str, Any]:
    """Import a file into the empty scene; write its triangles to `folder` and return its facts."""
    try:
        import_file(path)
    except RuntimeError as error:  # what operators raise
        raise Fault("parse_error", f"Blender cannot read it: {last_line(error)}") from error
    scene = bpy.context.scene
    scene.frame_set(0)
    for light in [o for o in scene.objects if o.type in {"LIGHT", "LIGHT_PROBE"}]:
        light.hide_render = True  # not removed: a mesh may be its child
    missing = drop_missing_images()
    facts = write_geometry(folder)
    for mesh in bpy.data.meshes:
        fill_materials(mesh)
    if normals == "geometry":
        for material in bpy.data.materials:
            unlink(material, ("Normal", "Coat Normal", "Displacement"))
    images = [i for i in bpy.data.images if i.type == "IMAGE" and i.size[0]]
    return facts | {"missing_textures": missing, "textures": len(images), "animations": len(bpy.data.actions)}


def import_file(path: Path) -> None:
    """Import a mesh file. OBJ and PLY do not name their axes; they are taken as +Y up, +Z front, like glTF."""
    name, axes = str(path), {"forward_axis": "NEGATIVE_Z", "up_axis": "Y"}
    match path.suffix.lower():
        case ".glb" | ".gltf":
            bpy.ops.import_scene.gltf(filepath=name, disable_bone_shape=True, import_webp_texture=True)
        case ".obj":
            bpy.ops.wm.obj_import(filepath=name, **axes)
        case ".ply":
            bpy.ops.wm.ply_import(filepath=name, **axes)
        case other:
            raise Fault("parse_error", f"files of type '{other}' are not read; give .glb, .gltf, .obj or .ply")


def drop_missing_images() -> int:
    """Unlink pictures that cannot be read, which would be drawn in magenta; return how many there are."""
    missing = {i for i in bpy.data.images if i.type == "IMAGE" and 0 in i.size}
    for material in bpy.data.materials:
        for node in list(material.node_tree.nodes) if material.node_tree else []:
            if node.type == "TEX_IMAGE" and node.image in missing:
                for link in [link for output in node.outputs for link in output.links]:
                    if link.to_socket.type == "RGBA":
                        link.to_socket.default_value = (1, 1, 1, 1)
                    material.node_tree.links.remove(link)
    return len(missing)


def fill_materials(mesh: Any) -> None:
    """Give faces without a material matt white times their vertex colours, if any."""
    if any(mesh.materials) or not mesh.polygons:
        return
    material = bpy.data.materials.new("plain")
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    surface, output = tree.nodes.new("ShaderNodeBsdfDiffuse"), tree.nodes.new("ShaderNodeOutputMaterial")
    surface.inputs["Color"].default_value = (1, 1, 1, 1)
    tree.links.new(surface.outputs[0], output.inputs["Surface"])
    if mesh.color_attributes:
        colour = tree.nodes.new("ShaderNodeVertexColor")
        colour.layer_name = mesh.color_attributes[0].name
        tree.links.new(colour.outputs["Color"], surface.inputs["Color"])
    mesh.materials.clear()
    mesh.materials.append(material)


def unlink(material: Any, sockets: tuple[str, ...]) -> None:
    trees = [material.node_tree] if material.node_tree else []
    for tree in trees:
        trees += [n.node_tree for n in tree.nodes if n.type == "GROUP" and n.node_tree and n.node_tree not in trees]
        for link in [k for k in tree.links if k.to_socket.name in sockets and k.to_node.type != "GROUP_OUTPUT"]:
            tree.links.remove(link)


def write_geometry(folder: Path) -> dict[str, Any]:
    """Write every visible mesh as it is drawn (posed, instanced), in glTF's frame, as one list of triangles."""
    vertices, faces, offset, materials, smooth = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0, set(), []
    for instance in bpy.context.evaluated_depsgraph_get().object_instances:
        if instance.object.type != "MESH" or not instance.show_self:
            continue
        mesh = instance.object.data
        triangles = np.empty(len(mesh.loop_triangles) * 3, np.int32)
        if not len(triangles):
            continue
        corners = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", corners)
        mesh.loop_triangles.foreach_get("vertices", triangles)
        to_world = np.array(TO_BLENDER.inverted() @ instance.matrix_world)
        vertices.append(corners.reshape(-1, 3).astype(np.float64) @ to_world[:3, :3].T + to_world[:3, 3])
        faces.append(triangles.reshape(-1, 3).astype(np.int64) + offset)
        offset += len(mesh.vertices)
        materials |= {m.name for m in mesh.materials if m} or {""}
        smooth.append(mesh.normals_domain != "FACE")
    np.save(folder / "vertices.npy", np.concatenate(vertices))
    np.save(folder / "faces.npy", np.concatenate(faces))
    return {"materials": len(materials), "has_normals": bool(smooth) and all(smooth)}


def place(scale: float, centre: list[float]) -> None:
    """Parent the object's roots to one empty that moves `centre` to the origin and scales by `scale`."""
    scene = bpy.context.scene
    frame = bpy.data.objects.new("frame", None)
    scene.collection.objects.link(frame)
    for root in [o for o in scene.objects if o.parent is None and o is not frame]:
        root.parent = frame
    frame.scale = (scale, scale, scale)
    frame.location = -scale * (TO_BLENDER @ Vector(centre))
