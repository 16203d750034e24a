"""References made from meshes: true views of the protocol's rig, with the mesh in their frame.

FOLDER/OBJECT/          a view folder, mesh.glb and record.json, made once for each mesh file and rig
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nova3d.cameras import Cameras, preset
from nova3d.errors import InputError
from nova3d.evaluation.cache import object_files
from nova3d.evaluation.folders import ObjectFolder
from nova3d.evaluation.protocols import Protocol, ViewRules
from nova3d.rendering import render_object
from nova3d.rendering.glb import glb_bytes
from nova3d.rendering.mesh_files import read_scene
from nova3d.rendering.meshes import assemble
from nova3d.transforms import cameras_to_transforms
from nova3d.utils import provenance
from nova3d.utils.files import check_component, read_json, replacing
from nova3d.utils.progress import Progress
from nova3d.utils.workers import in_parts

log = logging.getLogger(__name__)

VERSION = 1  # raise it when drawing changes the pictures; references are then drawn again
FOLDER = "references"
_DRAWN = "drawn here from meshes: raster engine, studio light, bounding box centred, longest side 1"


def write_reference(path: Path, rig: Cameras, folder: Path, record: Mapping[str, object] | None = None) -> None:
    """Write the true views of a mesh file and, in their frame, the mesh.

    Args:
        path: the mesh file; its bounding box is centred and its longest side made 1.
        rig: the cameras.
        folder: gets a view folder and mesh.glb.
        record: becomes record.json.

    Raises:
        InputError: where the mesh cannot be read or drawn, or lacks a texture.
    """
    render_object(path, rig).save(folder, record)
    parts = read_scene(path).parts
    scale, centre = assemble(parts).normalisation()
    placed = [replace(part, positions=(part.positions - centre.numpy()) * scale) for part in parts]
    with replacing(folder / "mesh.glb") as aside:
        aside.write_bytes(glb_bytes(placed))


def with_views(
    references: ObjectFolder,
    runs: Sequence[ObjectFolder],
    protocol: Protocol,
    folder: Path,
    workers: int,
    progress: Progress,
) -> tuple[ObjectFolder, dict[str, str]]:
    """The references, with views where a protocol scores views and they hold meshes alone.

    The cameras are the protocol's. Where it takes any, or any size, they are those of the first run.

    Args:
        references: what was given.
        runs: the predictions.
        protocol: what is scored and how.
        folder: where the made references are kept: FOLDER/references/OBJECT.
        workers: processes that share the objects out.
        progress: called with finished objects and objects in all.

    Returns:
        The references to score against, and a fact for the table where they were made here.

    Raises:
        InputError: naming the object, where its mesh cannot be drawn or no cameras are known.
    """
    rules = protocol.views
    if "views" not in protocol.kinds or references.objects(("views",), rules):
        return references, {}
    names = sorted(protocol.objects) or references.objects(("meshes",), rules)
    names = [name for name in names if references.holds(name, "meshes", rules)]
    if not any(run.holds(name, "views", rules) for run in runs for name in names):
        return references, {}
    made = ObjectFolder(folder / FOLDER, names=tuple(names))
    rigs = {check_component(name, "object"): _rig(name, runs, rules) for name in names}
    keys = {name: _key(references, name, rig) for name, rig in rigs.items()}
    made.root.mkdir(parents=True, exist_ok=True)
    lacking = [name for name in names if not _is_made(made.root / name, keys[name])]
    if lacking:
        log.info("'%s' holds meshes alone: views of %d are drawn into '%s'", references.root, len(lacking), made.root)

    def tick() -> None:
        progress(sum(_is_made(made.root / name, keys[name]) for name in lacking), len(lacking), "drawing references")

    in_parts(partial(_make, references, made.root, lacking, rigs, keys), workers, "cpu", tick)
    return made, {"references": _DRAWN}


def _make(
    references: ObjectFolder,
    root: Path,
    names: Sequence[str],
    rigs: Mapping[str, Cameras],
    keys: Mapping[str, str],
    part: int,
    parts: int,
    device: str,
    tick: Callable[[], None],
) -> None:
    for name in names[part::parts]:
        record = provenance.record("reference", {"key": keys[name]}, mesh=references.mesh(name).name)
        with replacing(root / name) as aside:
            write_reference(references.mesh(name), rigs[name], aside, record)
        tick()


def _rig(name: str, runs: Sequence[ObjectFolder], rules: ViewRules) -> Cameras:
    if rules.cameras != "any" and rules.size:
        return preset(rules.cameras, rules.size)
    run = next((run for run in runs if run.holds(name, "views", rules)), None)
    if run is None:
        raise InputError(
            f"the references of {name} cannot be drawn: the protocol takes any cameras, and no prediction of it says "
            "which; name the objects that were predicted as objects=[...], or give views as references"
        )
    return run.views(name, rules).cameras


def _key(references: ObjectFolder, name: str, rig: Cameras) -> str:
    """A hash of everything that a drawn reference depends on."""
    return provenance.hash_json([VERSION, object_files(references.root, name), cameras_to_transforms(rig)])


def _is_made(folder: Path, key: str) -> bool:
    record = folder / "record.json"
    if not record.is_file():
        return False
    try:
        config = read_json(record, dict, "record").get("config")
    except InputError:  # an unreadable record
        return False
    return isinstance(config, dict) and config.get("key") == key
