"""The object in Blender: one mesh made of the client's arrays, and its materials as shader nodes."""

from pathlib import Path
from typing import Any

import bpy
import numpy as np
from common import TO_BLENDER


def build(folder: Path, materials: list[dict[str, Any]], normals: str) -> None:
    """Make the mesh of the arrays in `folder` (NAME.npy), which are removed.

    vertices [n,3], faces [f,3], normals [n,3] unit, uv [n,2], colours [n,4] linear, face_material [f], one_sided [f]
    bool, all in glTF's frame; for the material i: textureI [h,w,4] uint8, and the maps that its finish has.

    Args:
        folder: of the arrays.
        materials: wrap (along u and v), nearest, alpha (cutoff, blended; None where opaque) and finish (None where
            matt) of each.
        normals: "shading" draws normal maps.
    """
    arrays = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
    for name in arrays:
        (folder / f"{name}.npy").unlink()
    faces, turn = arrays["faces"], np.array(TO_BLENDER)[:3, :3].T
    corners = faces.reshape(-1)
    mesh = bpy.data.meshes.new("object")
    mesh.vertices.add(len(arrays["vertices"]))
    mesh.loops.add(len(corners))
    mesh.polygons.add(len(faces))
    mesh.vertices.foreach_set("co", (arrays["vertices"] @ turn).astype(np.float32).reshape(-1))
    mesh.loops.foreach_set("vertex_index", corners.astype(np.int32))
    mesh.polygons.foreach_set("loop_start", np.arange(0, len(corners), 3, dtype=np.int32))
    # A face drawn from its front alone has a material of its own, after all others.
    slot = arrays["face_material"] + len(materials) * arrays["one_sided"]
    mesh.polygons.foreach_set("material_index", slot.astype(np.int32))
    mesh.polygons.foreach_set("use_smooth", np.ones(len(faces), bool))
    coordinates = mesh.uv_layers.new(name="uv")
    coordinates.uv.foreach_set("vector", arrays["uv"][corners].astype(np.float32).reshape(-1))
    colours = mesh.color_attributes.new("colours", "FLOAT_COLOR", "POINT")
    colours.data.foreach_set("color", arrays["colours"].astype(np.float32).reshape(-1))
    for one_sided in (False, True) if arrays["one_sided"].any() else (False,):
        for index, entry in enumerate(materials):
            mesh.materials.append(shader(index, entry, arrays, normals == "shading", one_sided))
    mesh.update(calc_edges=True)
    mesh.normals_split_custom_set_from_vertices((arrays["normals"] @ turn).astype(np.float32))
    bpy.context.scene.collection.objects.link(bpy.data.objects.new("object", mesh))


def shader(index: int, entry: dict[str, Any], arrays: dict[str, np.ndarray], bumps: bool, one_sided: bool) -> Any:
    """The material `index` as nodes: base colour = texture x vertex colour, then light, then alpha."""
    material = bpy.data.materials.new(f"material{index}")
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    colour = tree.nodes.new("ShaderNodeVertexColor")
    colour.layer_name = "colours"
    base, alpha = colour.outputs["Color"], colour.outputs["Alpha"]
    if arrays[f"texture{index}"].shape[:2] != (1, 1) or (arrays[f"texture{index}"] != 255).any():
        texture = picture(tree, arrays[f"texture{index}"], entry, "sRGB")
        product = tree.nodes.new("ShaderNodeMix")
        product.data_type, product.blend_type = "RGBA", "MULTIPLY"
        product.inputs["Factor"].default_value = 1
        tree.links.new(texture.outputs["Color"], product.inputs[6])
        tree.links.new(base, product.inputs[7])
        base, alpha = product.outputs[2], maths(tree, "MULTIPLY", texture.outputs["Alpha"], alpha)
    surface = lit(tree, base, index, entry, arrays, bumps)
    shown = None
    if entry["alpha"]:
        cutoff = entry["alpha"]["cutoff"]
        shown = alpha if entry["alpha"]["blended"] else maths(tree, "GREATER_THAN", alpha, cutoff - 1e-4)
    if one_sided:
        front = maths(tree, "SUBTRACT", 1.0, tree.nodes.new("ShaderNodeNewGeometry").outputs["Backfacing"])
        shown = front if shown is None else maths(tree, "MULTIPLY", shown, front)
    if shown is not None:
        mix, clear = tree.nodes.new("ShaderNodeMixShader"), tree.nodes.new("ShaderNodeBsdfTransparent")
        tree.links.new(shown, mix.inputs[0])
        tree.links.new(clear.outputs[0], mix.inputs[1])
        tree.links.new(surface, mix.inputs[2])
        surface = mix.outputs[0]
    tree.links.new(surface, tree.nodes.new("ShaderNodeOutputMaterial").inputs["Surface"])
    return material


def lit(tree: Any, base: Any, index: int, entry: dict[str, Any], arrays: dict[str, np.ndarray], bumps: bool) -> Any:
    """The surface of a base colour: matt, unlit, or with a finish."""
    finish = entry["finish"]
    if finish is None or finish["unlit"]:
        node = tree.nodes.new("ShaderNodeBsdfDiffuse" if finish is None else "ShaderNodeEmission")
        tree.links.new(base, node.inputs["Color"])
        return node.outputs[0]
    node = tree.nodes.new("ShaderNodeBsdfPrincipled")
    tree.links.new(base, node.inputs["Base Color"])
    for name, socket in (("metallic", "Metallic"), ("roughness", "Roughness"), ("transmission", "Transmission Weight")):
        node.inputs[socket].default_value = finish[name]
    if finish["metallic_roughness_map"]:
        channels = tree.nodes.new("ShaderNodeSeparateColor")
        texture = picture(tree, arrays[f"metallic_roughness_map{index}"], entry, "Non-Color")
        tree.links.new(texture.outputs["Color"], channels.inputs[0])
        for name, socket, output in (("metallic", "Metallic", "Blue"), ("roughness", "Roughness", "Green")):
            tree.links.new(maths(tree, "MULTIPLY", channels.outputs[output], finish[name]), node.inputs[socket])
    strength = max(finish["emission"])
    if strength > 0:
        node.inputs["Emission Strength"].default_value = strength
        tint = (*(part / strength for part in finish["emission"]), 1)
        node.inputs["Emission Color"].default_value = tint
        if finish["emission_map"]:
            texture = picture(tree, arrays[f"emission_map{index}"], entry, "sRGB")
            product = tree.nodes.new("ShaderNodeMix")
            product.data_type, product.blend_type = "RGBA", "MULTIPLY"
            product.inputs["Factor"].default_value = 1
            product.inputs[7].default_value = tint
            tree.links.new(texture.outputs["Color"], product.inputs[6])
            tree.links.new(product.outputs[2], node.inputs["Emission Color"])
    if bumps and finish["normal_map"]:
        tangent = tree.nodes.new("ShaderNodeNormalMap")
        tangent.uv_map = "uv"
        tangent.inputs["Strength"].default_value = finish["normal_scale"]
        texture = picture(tree, arrays[f"normal_map{index}"], entry, "Non-Color")
        tree.links.new(texture.outputs["Color"], tangent.inputs["Color"])
        tree.links.new(tangent.outputs[0], node.inputs["Normal"])
    return node.outputs[0]


def picture(tree: Any, pixels: np.ndarray, entry: dict[str, Any], space: str) -> Any:
    """A texture of uint8 pixels [h,w,3 or 4], looked up by the material's sampler."""
    height, width = pixels.shape[:2]
    image = bpy.data.images.new("picture", width, height, alpha=True)
    image.colorspace_settings.name = space
    image.alpha_mode = "CHANNEL_PACKED"
    rgba = np.ones((height, width, 4), np.float32)
    rgba[..., : pixels.shape[2]] = pixels[::-1] / np.float32(255)
    image.pixels.foreach_set(rgba.reshape(-1))
    image.update()
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = image
    node.interpolation = "Closest" if entry["nearest"] else "Linear"
    coordinates = tree.nodes.new("ShaderNodeUVMap")
    coordinates.uv_map = "uv"
    place = coordinates.outputs[0]
    if entry["wrap"] != ["repeat", "repeat"]:
        node.extension = "EXTEND"
        split, join = tree.nodes.new("ShaderNodeSeparateXYZ"), tree.nodes.new("ShaderNodeCombineXYZ")
        tree.links.new(place, split.inputs[0])
        for axis, wrap in enumerate(entry["wrap"]):
            one = split.outputs[axis]
            if wrap != "clamp":  # beyond the edge, EXTEND clamps
                one = maths(tree, "PINGPONG" if wrap == "mirror" else "FRACT", one, 1.0)
            tree.links.new(one, join.inputs[axis])
        place = join.outputs[0]
    tree.links.new(place, node.inputs["Vector"])
    return node


def maths(tree: Any, operation: str, *values: Any) -> Any:
    """The output of a maths node whose inputs are sockets or numbers."""
    node = tree.nodes.new("ShaderNodeMath")
    node.operation = operation
    for slot, value in enumerate(values):
        if isinstance(value, float):
            node.inputs[slot].default_value = value
        else:
            tree.links.new(value, node.inputs[slot])
    return node.outputs[0]
