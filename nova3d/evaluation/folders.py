"""A folder of objects of any method: DIR/<object>/ with views, a mesh or both, or DIR/<object>.glb."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nova3d import layouts
from nova3d.errors import InputError
from nova3d.evaluation.protocols import ViewRules
from nova3d.rendering.mesh_files import MESH_SUFFIXES
from nova3d.utils.files import check_folder
from nova3d.utils.suffixes import IMAGE_SUFFIXES
from nova3d.views import ViewSet

_NEEDS = {"views": "views", "meshes": "a mesh (mesh.glb, or <object>.glb beside the folders)", "textures": "a mesh"}
OUR_AXES = "+y,+z"


@dataclass(frozen=True)
class ObjectFolder:
    """One method's folder, or the references'."""

    root: Path
    layout: str = "auto"
    """Of the views (`nova3d.layouts`). "auto" detects it from the files, and assumes the protocol's rig for numbered
    pictures without cameras."""
    assume: layouts.Assume = field(default_factory=layouts.Assume)
    """What is assumed where the layout does not specify it."""
    axes: str = OUR_AXES
    """Of the meshes: the signed axis that is up and the one to the input view's camera, as "+z,-y" (`mesh_turn`)."""
    names: tuple[str, ...] = ()
    """The objects to use; empty: all of the folder."""

    @staticmethod
    def open(
        path: str | Path,
        role: str,
        layout: str = "auto",
        assume: layouts.Assume | None = None,
        axes: str = OUR_AXES,
    ) -> "ObjectFolder":
        """An existing folder; raises InputError naming `role` where it does not exist, and for invalid axes."""
        mesh_turn(axes)
        path = check_folder(path, f"{role} folder")
        return ObjectFolder(path, layout, assume or layouts.Assume(), axes)

    def objects(self, kinds: tuple[str, ...], rules: ViewRules) -> list[str]:
        """The names, sorted, of all objects with something of `kinds`."""
        found = {path.name if path.is_dir() else path.stem for path in self.root.iterdir() if _is_object(path)}
        names = found.intersection(self.names) if self.names else found
        return sorted(name for name in names if any(self.holds(name, kind, rules) for kind in kinds))

    def holds(self, name: str, kind: str, rules: ViewRules) -> bool:
        """Whether the object has files of `kind` (protocols.KINDS); they may still be unreadable."""
        return bool(self._layout_of(name, rules)) if kind == "views" else self._mesh(name) is not None

    def views(self, name: str, rules: ViewRules) -> ViewSet:
        """The object's views; raises InputError where it has none or they cannot be read."""
        layout = self._layout_of(name, rules)
        if not layout:
            raise InputError(f"'{self.root}' lacks {_NEEDS['views']} of {name}")
        assume = self.assume
        said = replace(assume, max_megapixels=layouts.Assume.max_megapixels)
        if layout == "frames" and said == layouts.Assume() and rules.cameras != "any":
            assume = replace(assume, cameras=rules.cameras)
        assume = replace(assume, as_they_are=rules.as_they_are)
        return layouts.read(self.root / name, layout, assume=assume)

    def mesh(self, name: str) -> Path:
        """The object's mesh file; raises InputError where there is none."""
        path = self._mesh(name)
        if path is None:
            raise InputError(f"'{self.root}' lacks {_NEEDS['meshes']} of {name}")
        return path

    def _layout_of(self, name: str, rules: ViewRules) -> str:
        folder = self.root / name
        if not folder.is_dir():
            return ""
        if self.layout != "auto" or (folder / "transforms.json").is_file():
            return self.layout
        try:
            return layouts.detect(folder)
        except InputError:
            numbered = any(path.stem.isdigit() and path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
            return "frames" if numbered and rules.cameras != "any" else ""

    def _mesh(self, name: str) -> Path | None:
        found = [self.root / name / f"mesh{suffix}" for suffix in MESH_SUFFIXES]
        found += [self.root / f"{name}{suffix}" for suffix in MESH_SUFFIXES]
        return next((path for path in found if path.is_file()), None)


def mesh_turn(axes: str) -> NDArray[np.float64]:
    """The rotation of meshes with other axes into our frame (+Y up, +Z to the input view's camera).

    Args:
        axes: UP,FRONT, each one of +x, -x, +y, -y, +z and -z.

    Returns:
        [3,3] with determinant 1.

    Raises:
        InputError: where the text is not of that form, or both name the same axis.
    """
    match = re.fullmatch(r"([+-])([xyz]),([+-])([xyz])", axes.lower())
    if not match or match[2] == match[4]:
        raise InputError(f"mesh axes '{axes}' are not UP,FRONT of two different axes, as {OUR_AXES} or +z,-y")
    up, front = np.zeros(3), np.zeros(3)
    up["xyz".index(match[2])], front["xyz".index(match[4])] = float(f"{match[1]}1"), float(f"{match[3]}1")
    return np.stack([np.cross(up, front), up, front])


def common_kinds(
    predictions: ObjectFolder, references: ObjectFolder, objects: list[str], kinds: tuple[str, ...], rules: ViewRules
) -> tuple[list[str], list[str]]:
    """Which of `kinds` are scored, and a line on each that is not.

    A kind is scored where predictions and references both hold it for some object; references must then hold it for
    all. Raises InputError naming what the references lack, and where the two have nothing in common.
    """
    lines: list[str] = []
    scored: list[str] = []
    for kind in kinds:
        lacking = [name for name in objects if not references.holds(name, kind, rules)]
        predicted = any(predictions.holds(name, kind, rules) for name in objects)
        if predicted and len(lacking) < len(objects):
            if lacking:
                raise InputError(
                    f"'{references.root}' has {_NEEDS[kind]} for some objects, but lacks {', '.join(lacking)}"
                )
            scored.append(kind)
        elif len(kinds) > 1:
            lines.append(f"{kind} are not scored: '{(references if predicted else predictions).root}' holds none")
    if not scored:
        wanted = " or ".join(_NEEDS[kind] for kind in kinds)
        raise InputError(
            f"'{predictions.root}' and '{references.root}' have nothing in common that the protocol scores: it needs "
            f"{wanted} of {', '.join(objects[:5])} on both sides"
        )
    return scored, lines


def _is_object(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in MESH_SUFFIXES)
