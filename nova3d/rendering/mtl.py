"""MTL files, the materials of OBJ: Kd, d, Tr, map_Kd, map_d with their options, as exporters write them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nova3d.errors import InputError
from nova3d.rendering.file_access import (
    Folder,
    PictureError,
    Pictures,
    decode_text,
    read_regular,
)
from nova3d.rendering.parts import Material, Sampler, Wrap
from nova3d.utils.text import shorten

# How many words follow an option; three numbers at most, of which later ones may be left out.
_FIXED = {"-blendu": 1, "-blendv": 1, "-boost": 1, "-mm": 2, "-texres": 1, "-clamp": 1, "-bm": 1, "-imfchan": 1}
_FIXED |= {"-type": 1, "-cc": 1, "-colorspace": 1}
_VECTORS = ("-o", "-s", "-t")


@dataclass(frozen=True)
class MtlMaterial:
    """A material, and the placement of its texture: uv' = uv * scale + offset."""

    material: Material
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class _Map:
    name: str
    scale: tuple[float, float]
    offset: tuple[float, float]
    clamp: bool


def read_mtl(path: Path, folder: Folder, pictures: Pictures) -> dict[str | None, MtlMaterial]:
    """Read an MTL file.

    Args:
        path: the file.
        folder: where its pictures may be.
        pictures: of the mesh file, with what they may cost.

    Returns:
        The materials by name.

    Raises:
        InputError: where the file cannot be read.
        ValueError: for a number that is none.
    """
    text = decode_text(read_regular(path, pictures.limits.file_bytes))
    entries: dict[str | None, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        key, _, rest = line.strip().replace("\t", " ").partition(" ")
        if key.lower() == "newmtl":
            current = entries.setdefault(rest.strip(), {})
        elif rest.strip() and not key.startswith("#"):
            current[key.lower()] = rest.strip()
    return {name: _material(entry, path.parent, folder, pictures) for name, entry in entries.items()}


def _material(entry: dict[str, str], base: Path, folder: Folder, pictures: Pictures) -> MtlMaterial:
    factor = np.ones(3)
    if "kd" in entry and not entry["kd"].startswith(("spectral", "xyz")):
        numbers = [float(word) for word in entry["kd"].partition("#")[0].split()[:3]]
        factor = np.array(numbers * 3 if len(numbers) == 1 else numbers)
        if factor.shape != (3,) or not np.isfinite(factor).all():
            raise ValueError(f"Kd '{shorten(entry['kd'], 30)}' is not a colour")
    elif "map_kd" not in entry:
        factor = np.full(3, 0.8) if "kd" in entry else factor
    opacity = _opacity(entry)
    picture, missing, texture = None, "", _Map("", (1.0, 1.0), (0.0, 0.0), False)
    if "map_kd" in entry:
        texture = _map(entry["map_kd"])
        picture, missing = _picture(texture.name, base, folder, pictures)
        if not factor.any():  # exporters write black where they mean the picture alone
            factor = np.ones(3)
    mask = None
    if "map_d" in entry:
        mask, lost = _picture(_map(entry["map_d"]).name, base, folder, pictures)
        missing = missing or lost
    if mask is not None:
        picture = _with_alpha(picture, mask)
    translucent = mask is not None or opacity < 1
    wrap: Wrap = "clamp" if texture.clamp else "repeat"
    red, green, blue = factor.clip(0, 1).tolist()
    material = Material(
        factor=(red, green, blue, opacity),
        picture=picture,
        sampler=Sampler((wrap, wrap)),
        alpha_mode="BLEND" if translucent else "OPAQUE",
        missing=missing,
    )
    return MtlMaterial(material, texture.scale, texture.offset)


def _opacity(entry: dict[str, str]) -> float:
    """Alpha of `d`, or 1 - `Tr`. `Tr 1` alone means opaque: the exporters that write it mix the two up."""
    words = {key: entry[key].partition("#")[0].split() for key in ("d", "tr") if key in entry}
    if words.get("d"):
        return min(1.0, max(0.0, float(words["d"][-1])))  # `d -halo x` too
    if words.get("tr"):
        transparency = float(words["tr"][0])
        return 1.0 if transparency >= 1 else min(1.0, 1.0 - transparency)
    return 1.0


def _map(text: str) -> _Map:
    """Split the value of a map: options, then a name that may hold blanks."""
    scale, offset, clamp = [1.0, 1.0], [0.0, 0.0], False
    rest = text
    while rest.startswith("-"):
        option, _, rest = rest.partition(" ")
        rest = rest.lstrip()
        if option in _VECTORS:
            numbers: list[float] = []
            while len(numbers) < 3 and (word := rest.split(" ", 1)[0]) and _is_number(word) and " " in rest:
                numbers.append(float(word))
                rest = rest[len(word) :].lstrip()
            target = {"-s": scale, "-o": offset}.get(option)
            if target is not None:
                target[: len(numbers[:2])] = numbers[:2]
        elif option in _FIXED:
            words = rest.split(" ", _FIXED[option])
            clamp = clamp or (option == "-clamp" and words[0] == "on")
            rest = words[-1].lstrip() if len(words) > _FIXED[option] else ""
        else:  # not an option: a name that begins with a dash
            rest = f"{option} {rest}".strip()
            break
    return _Map(rest.strip().strip('"'), (scale[0], scale[1]), (offset[0], offset[1]), clamp)


def _is_number(word: str) -> bool:
    try:
        return bool(np.isfinite(float(word)))
    except ValueError:
        return False


def _picture(name: str, base: Path, folder: Folder, pictures: Pictures) -> tuple[NDArray[np.uint8] | None, str]:
    """The picture, or why there is none. A path of the exporter's machine counts by its last part."""
    last = name.replace("\\", "/").rpartition("/")[2]
    spellings = [name, last]
    if "#" in name:
        spellings += [name.partition("#")[0].strip(), last.partition("#")[0].strip()]
    path = next((found for s in spellings for place in (base, folder.own) if (found := folder.find(s, place))), None)
    if path is None:
        return None, f"'{shorten(name)}': the file is not there"
    try:
        return pictures.decode(read_regular(path, pictures.limits.file_bytes)), ""
    except PictureError as error:
        return None, f"'{shorten(name)}': {error}"
    except InputError as error:
        return None, str(error)


def _with_alpha(picture: NDArray[np.uint8] | None, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [h,w,4] with the mask's alpha, or its grey where its alpha is 255 throughout."""
    values = mask[..., 3] if int(mask[..., 3].min()) < 255 else mask[..., :3].mean(axis=-1).round().astype(np.uint8)
    if picture is None:
        picture = np.full((*values.shape, 4), 255, np.uint8)
    rows = np.arange(picture.shape[0]) * values.shape[0] // picture.shape[0]
    columns = np.arange(picture.shape[1]) * values.shape[1] // picture.shape[1]
    return np.concatenate([picture[..., :3], values[rows][:, columns][..., None]], axis=-1)
