"""The objects of a study: mesh files of a folder, models of Google Scanned Objects as downloaded, or shards."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nova3d.data.shards import INDEX, ShardReader
from nova3d.data.sources import Asset, SourceConfig
from nova3d.data.sources.base import uid_of
from nova3d.data.sources.gso import MODEL_MESH, GsoSource
from nova3d.errors import InputError
from nova3d.evaluation.cache import object_files
from nova3d.rendering.mesh_files import MESH_SUFFIXES, meshes_by_name
from nova3d.utils import provenance
from nova3d.utils.files import check_component, check_folder


def object_names(source: Path, wanted: Sequence[str] = (), meshes_only: bool = False) -> tuple[str, ...]:
    """The names of a folder's objects, sorted.

    Args:
        source: a folder of mesh files and of MODEL/meshes/model.obj as GSO is downloaded, or of shards.
        wanted: those to take, a downloaded model also by the name of its folder; empty takes all.
        meshes_only: read no shards.

    Returns:
        The names of all objects, or the wanted ones, each once.

    Raises:
        InputError: where the folder is missing or holds no object, for wanted names that it lacks, where two meshes
            have one name, and for a name that cannot be a file's.
    """
    folders: dict[str, str] = {}  # of downloaded models, whose names have no dots
    if not meshes_only and (source / INDEX).is_file():
        there = sorted(sample["uid"] for sample in ShardReader(source).samples)
    else:
        check_folder(source, "objects folder")
        meshes = _meshes(source)
        there = list(meshes)
        folders = {_entry(source, path): name for name, path in meshes.items() if path.parent != source}
    if not there:
        lacking = f"no mesh ({', '.join(MESH_SUFFIXES)})"
        other = " and no MODEL/meshes/model.obj" if meshes_only else ", no MODEL/meshes/model.obj and no shards"
        raise InputError(f"'{source}' holds {lacking}{other}")
    chosen = {name if name in there else folders.get(name, name) for name in wanted}
    if missing := sorted(chosen.difference(there)):
        raise InputError(f"'{source}' has no object {', '.join(missing)}")
    for name in there:
        check_component(name, f"object of '{source}'", most=200)
    return tuple(sorted(chosen)) if chosen else tuple(there)


@contextmanager
def mesh_file(source: Path, name: str) -> Iterator[Path]:
    """An object's mesh for the block, +Y up with its textures beside it.

    Args:
        source: a folder of meshes, as `object_names` reads it.
        name: one of its names.

    Yields:
        The file itself. Of a downloaded model, which is Z-up and whose texture lies elsewhere, a copy that is removed
        after the block.
    """
    path = _meshes(source, name)[name]
    if path.parent == source:
        yield path
        return
    with tempfile.TemporaryDirectory() as turned:
        yield GsoSource(SourceConfig(path=str(source))).fetch(Asset(name, "gso", str(path)), Path(turned))


def mesh_hash(source: Path, name: str) -> str:
    """A hash of every file of an object.

    Args:
        source: a folder of meshes, as `object_names` reads it.
        name: one of its names.

    Returns:
        Hex digits that change with the mesh and with what lies beside it under its name.
    """
    path = _meshes(source, name)[name]
    # The folder of a downloaded model may have a name with dots.
    return provenance.hash_json(object_files(source, name if path.parent == source else _entry(source, path)))


def _meshes(source: Path, name: str = "") -> dict[str, Path]:
    """Name -> mesh of a folder's own mesh files and of its downloaded models; sorted by names.

    Args:
        source: the folder.
        name: look into no other object's folder: a study asks for one object at a time, and models are many.

    Returns:
        All objects, or at least the named one.

    Raises:
        InputError: where two have one name.
    """
    entries = sorted(entry for entry in source.iterdir() if not entry.name.startswith("."))
    found = meshes_by_name(entries)
    for entry in entries:
        uid = uid_of(entry.name)
        if name in ("", uid) and (entry / MODEL_MESH).is_file():
            if uid in found:
                both = f"'{_entry(source, found[uid])}' and '{entry.name}'"
                raise InputError(f"{both} of '{source}' are both object '{uid}': rename or remove one")
            found[uid] = entry / MODEL_MESH
    return dict(sorted(found.items()))


def _entry(source: Path, mesh: Path) -> str:
    """The name of the folder's entry that a mesh is, or lies in."""
    return mesh.relative_to(source).parts[0]
