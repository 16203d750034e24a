"""Google Scanned Objects, as Gazebo's model server gives them or converted to GLB."""

import re
import shutil
from pathlib import Path
from typing import Any

from nova3d.data.sources.base import Asset, SourceConfig, check_file, licence_rows, select_uids, uid_of
from nova3d.data.sources.licences import spdx
from nova3d.errors import InputError
from nova3d.rendering.reasons import Reason, RenderError
from nova3d.utils.files import check_folder, readable
from nova3d.utils.progress import Progress

LICENCE = "CC-BY-4.0"  # of the whole collection; a model's own metadata.pbtxt is read where it is there
ATTRIBUTION = "Google Scanned Objects (Downs et al., ICRA 2022), Copyright 2020 Google LLC"
_URL = "https://fuel.gazebosim.org/1.0/GoogleResearch/models/"
MODEL_MESH = "meshes/model.obj"  # as downloaded, in the folder of a model
_MESHES = (MODEL_MESH, "model.obj")
_TEXTURES = ("", "materials/textures/", "meshes/")  # where a model's material file and its pictures may lie


class GsoSource:
    """A folder of `MODEL/meshes/model.obj` with `materials/textures/texture.png` and `metadata.pbtxt`, or of
    `MODEL.glb`.

    The OBJs are Z-up and their material looks for the texture beside the mesh, where it is not: `fetch` writes a copy
    in glTF's frame with the texture where it is looked for. GLBs are used as they are.
    """

    def __init__(self, config: SourceConfig):
        self.config = config

    def assets(self, progress: Progress | None = None) -> list[Asset]:
        """List the models sorted by name.

        Raises InputError where the folder is missing or holds no model, and where two names have one uid.
        """
        folder = check_folder(self.config.path, "source folder")
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
        meshes = {_name(entry): mesh for entry in entries if (mesh := _mesh_of(entry))}
        if not meshes:
            raise InputError(f"no models (MODEL/{MODEL_MESH} or MODEL.glb) in '{folder}'")
        names: dict[str, str] = {}
        for name in meshes:
            if (other := names.setdefault(uid_of(name), name)) != name:
                raise InputError(f"'{other}' and '{name}' have the same uid '{uid_of(name)}': rename one of them")
        chosen = select_uids(names, self.config)
        rows = licence_rows(self.config.licences, folder)
        assets = []
        for done, (name, mesh) in enumerate(meshes.items(), start=1):
            if uid_of(name) in chosen:
                assets.append(_asset(name, mesh, _metadata(folder / name / "metadata.pbtxt") | rows.get(name, {})))
            if progress:
                progress(done, len(meshes), f"reading, {name}")
        return assets

    def fetch(self, asset: Asset, folder: Path) -> Path:
        """Return a GLB where it lies; an OBJ as a copy in `folder`/uid/, +Y up, with its texture beside it."""
        path = check_file(Path(asset.path), asset)
        if path.suffix.lower() != ".obj":
            return path
        # A folder of its own: all models call their texture by the same name.
        target = folder / asset.uid
        target.mkdir(parents=True, exist_ok=True)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            _copy_materials(lines, path.parent, target)
            (target / "model.obj").write_text("\n".join(map(_to_y_up, lines)) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise RenderError(Reason.PARSE_ERROR, f"'{path}' cannot be read: {error}") from error
        return target / "model.obj"


def _mesh_of(entry: Path) -> Path | None:
    if entry.is_file():
        return entry if entry.suffix.lower() == ".glb" else None
    return next((entry / name for name in _MESHES if (entry / name).is_file()), None)


def _name(entry: Path) -> str:
    return entry.stem if entry.is_file() else entry.name


def _asset(name: str, mesh: Path, facts: dict[str, Any]) -> Asset:
    return Asset(
        uid=uid_of(name),
        source="gso",
        path=str(mesh),
        url=str(facts.get("url") or _URL + readable(name)),
        sha256=str(facts.get("sha256", "")),
        size_bytes=mesh.stat().st_size,
        licence=spdx(str(facts.get("licence") or LICENCE)),
        attribution=str(facts.get("attribution") or ATTRIBUTION),
        title=str(facts.get("title") or readable(name)),
        category=str(facts.get("category", "")),
    )


def _metadata(path: Path) -> dict[str, str]:
    """Read licence, title and category from a model's metadata.pbtxt (protocol buffer text); {} without."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    keys = {"licence": r"\blicense", "title": r"^name", "category": r"\bfirst"}
    found = {k: re.search(rf'{key}:\s*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE) for k, key in keys.items()}
    return {k: match[1] for k, match in found.items() if match}


def _copy_materials(lines: list[str], folder: Path, target: Path) -> None:
    """Copy the material files that the OBJ names, and their pictures, into `target`; a missing picture is left out, so
    that the engine reports it."""
    for library in (line.split(maxsplit=1)[1].strip() for line in lines if line.startswith("mtllib ")):
        material = _locate(library, folder)
        if material is None:
            continue
        shutil.copyfile(material, target / Path(library).name)
        for line in material.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if words and words[0].lower().startswith("map_") and (picture := _locate(words[-1], folder)):
                shutil.copyfile(picture, target / Path(words[-1]).name)


def _locate(name: str, folder: Path) -> Path | None:
    places = [base / sub / Path(name).name for base in (folder, folder.parent) for sub in _TEXTURES]
    return next((place for place in places if place.is_file()), None)


def _to_y_up(line: str) -> str:
    """Convert a vertex or normal of a Z-up OBJ to glTF's frame: (x, y, z) becomes (x, z, -y)."""
    if not line.startswith(("v ", "vn ")):
        return line
    key, x, y, z, *colour = line.split()
    return " ".join([key, x, z, y[1:] if y.startswith("-") else f"-{y}", *colour])
