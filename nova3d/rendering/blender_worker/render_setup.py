"""Setting up Cycles: scene, device, light."""

import math
from typing import Any

import bpy
from common import TO_BLENDER, Fault
from mathutils import Vector

# Below this opacity a surface is a hole, as in leaves cut out by their texture; above it has a normal and a depth.
HOLE = 1 / 255


def reset(settings: dict[str, Any]) -> None:
    """Load an empty file with factory settings and set up the renderer; nothing of the last object remains."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    render, cycles = scene.render, scene.cycles
    render.engine = "CYCLES"
    set_device(scene, settings["device"])
    render.threads_mode = "FIXED" if settings["threads"] else "AUTO"
    if settings["threads"]:
        render.threads = settings["threads"]
    render.use_persistent_data = True  # the views of an object share its acceleration structure
    render.film_transparent = True
    render.use_compositing = render.use_sequencer = False
    render.resolution_percentage = 100
    cycles.pixel_filter_type = "BOX"  # alpha is coverage, and normals of two pixels do not mix
    cycles.samples, cycles.seed = settings["samples"], 0
    cycles.use_denoising = settings["denoise"]
    if settings["denoise"]:
        cycles.denoiser = "OPENIMAGEDENOISE"
        cycles.denoising_prefilter = cycles.denoising_quality = "FAST"
    scene.view_settings.view_transform = "Standard"
    layer = scene.view_layers[0]
    layer.use_pass_z = layer.use_pass_normal = True
    layer.pass_alpha_threshold = HOLE
    image = render.image_settings
    if hasattr(image, "media_type"):  # Blender 5
        image.media_type = "MULTI_LAYER_IMAGE"
    image.file_format, image.color_depth, image.exr_codec = "OPEN_EXR_MULTILAYER", "32", "NONE"


def gpu_kinds() -> set[str]:
    """Return the kinds of GPU that Cycles finds here."""
    preferences = bpy.context.preferences.addons["cycles"].preferences
    return {kind for kind in ("CUDA", "OPTIX") if preferences.get_devices_for_type(kind)}


def set_device(scene: Any, device: str) -> None:
    """Pin Cycles to one device and read it back: without the GPU, Cycles renders on the CPU silently."""
    scene.cycles.device = "CPU" if device == "cpu" else "GPU"
    if device == "cpu":
        return
    kind = device.upper()
    preferences = bpy.context.preferences.addons["cycles"].preferences
    found = preferences.get_devices_for_type(kind) if kind in gpu_kinds() else []
    gpus = [d for d in found if d.type == kind]
    if not gpus:
        raise Fault("device", f"Cycles finds no {kind} device here; engine.device can be cpu, cuda or optix")
    preferences.compute_device_type = kind
    for entry in found:
        entry.use = entry == gpus[0]  # one GPU: the pool shows each worker its own
    in_use = [(d.type, d.use) for d in preferences.get_devices_for_type(kind) if d.use]
    if scene.cycles.device != "GPU" or preferences.compute_device_type != kind or in_use != [(kind, True)]:
        raise Fault("device", f"Cycles was set to one {kind} device but reports {in_use}")


def set_light(light: str) -> None:
    """Set the light.

    `flat` is a white world of strength 1, so that a convex matt surface has its base colour. `studio` is the raster
    engine's light: a world whose radiance grows with height gives a surface 0.40 + 0.10 n_y (a gradient's irradiance
    is two thirds of its slope), two suns without shadows or highlights give key and fill.
    """
    scene = bpy.context.scene
    world = scene.world = bpy.data.worlds.new("light")
    world.use_nodes = True
    # Rays that leave the surface find a smooth world as well as any, and leave no noise on what sees all of it.
    world.cycles.sampling_method = "NONE"
    background = next(n for n in world.node_tree.nodes if n.type == "BACKGROUND")
    background.inputs["Color"].default_value = (1, 1, 1, 1)
    background.inputs["Strength"].default_value = 1
    if light == "flat":
        return
    nodes, links = world.node_tree.nodes, world.node_tree.links
    split, ramp = nodes.new("ShaderNodeSeparateXYZ"), nodes.new("ShaderNodeMath")
    ramp.operation = "MULTIPLY_ADD"
    ramp.inputs[1].default_value, ramp.inputs[2].default_value = 0.15, 0.40
    links.new(nodes.new("ShaderNodeTexCoord").outputs["Generated"], split.inputs[0])
    links.new(split.outputs["Z"], ramp.inputs[0])
    links.new(ramp.outputs[0], background.inputs["Strength"])
    for strength, direction in ((0.45, (0.35, 0.65, 0.67)), (0.25, (-0.5, 0.3, -0.8))):
        lamp = bpy.data.lights.new("sun", "SUN")
        lamp.energy, lamp.angle, lamp.use_shadow = strength * math.pi, 0, False
        sun = bpy.data.objects.new("sun", lamp)
        scene.collection.objects.link(sun)
        sun.rotation_mode = "QUATERNION"
        sun.rotation_quaternion = (TO_BLENDER @ Vector(direction)).to_track_quat("Z", "Y")
        sun.visible_glossy = False
