"""ViewSet: views of one object with normals, masks and cameras; the currency between the stages.

Folder format: `rgb/000.png ...` (straight-alpha RGBA), `normal/000.png ...` (encoded world normals, RGB),
`transforms.json` (nerfstudio style, frames in view order) and `record.json` (provenance).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from nova3d import images, normals
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.transforms import cameras_from_transforms, cameras_to_transforms, read_transforms, write_transforms
from nova3d.utils.files import write_json


@dataclass(frozen=True)
class ViewSet:
    """v views of one object.

    rgb [v,h,w,3] float [0,1], composited on white. normals [v,h,w,3] unit world normals; zero on background and
    wherever the normal is not known, so views without any normal maps have zeros everywhere (`has_normals`): the
    fusion's normal loss and every measure of angles then skip those pixels. mask [v,h,w] float [0,1] coverage, the
    only thing that says what is object. cameras: v cameras of the same width and height.
    """

    rgb: Tensor
    normals: Tensor
    mask: Tensor
    cameras: Cameras

    def __post_init__(self) -> None:
        v, h, w = self.mask.shape
        expected = (len(self.cameras), self.cameras.height, self.cameras.width)
        if (v, h, w) != expected or self.rgb.shape != (v, h, w, 3) or self.normals.shape != (v, h, w, 3):
            raise ValueError(
                f"shapes disagree: rgb {tuple(self.rgb.shape)}, normals {tuple(self.normals.shape)}, "
                f"mask {tuple(self.mask.shape)}, cameras {expected}"
            )

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def has_normals(self) -> bool:
        """Whether any pixel of any view has a normal."""
        return bool((self.normals != 0).any())

    def __getitem__(self, index: slice | Sequence[int]) -> "ViewSet":
        """The views at `index`, always with a view axis."""
        return ViewSet(self.rgb[index], self.normals[index], self.mask[index], self.cameras[index])

    def to(self, device: torch.device | str) -> "ViewSet":
        return ViewSet(self.rgb.to(device), self.normals.to(device), self.mask.to(device), self.cameras.to(device))

    def save(self, folder: str | Path, record: Mapping[str, Any] | None = None) -> Path:
        """Write the folder format; `record` becomes record.json and the PNGs' text chunks.

        Colour is stored un-premultiplied from the white composite, so that loading gives the same composite to
        within rounding. Raises InputError where the folder cannot be written.
        """
        folder = Path(folder)
        text = {"nova3d": json.dumps(record, sort_keys=True, default=str)} if record else None
        transforms = cameras_to_transforms(self.cameras)
        try:
            for name in ("rgb", "normal"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            for i, frame in enumerate(transforms["frames"]):
                images.save_image(folder / f"rgb/{i:03d}.png", self.straight_alpha(i), text)
                images.save_image(folder / f"normal/{i:03d}.png", normals.encode(self.normals[i]).cpu().numpy(), text)
                frame["file_path"] = f"rgb/{i:03d}.png"
                frame["normal_path"] = f"normal/{i:03d}.png"
            write_transforms(folder / "transforms.json", transforms)
            if record:
                write_json(folder / "record.json", record)
        except OSError as error:
            raise InputError(f"cannot write views to '{folder}': {error.strerror or error}") from error
        return folder

    def straight_alpha(self, index: int) -> Tensor:
        """View `index` as RGBA [h,w,4] in [0,1]: its colours without the white they were composited on."""
        alpha = self.mask[index][..., None].clamp(0, 1)
        quantised = (alpha * 255).round() / 255  # what the file will hold: divide by that, not by the float
        return images.off_white(self.rgb[index], quantised)

    @staticmethod
    def load(folder: str | Path) -> "ViewSet":
        """Read the folder format, whoever wrote it.

        A frame's `file_path` may lack its suffix; `normal_path` defaults to the same name under `normal/`. RGB
        pictures without alpha take their mask from the normal map. Raises InputError naming the first thing wrong:
        a missing folder, file or frame, a wrong size.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"view folder '{folder}' does not exist")
        path = folder / "transforms.json"
        if not path.is_file():
            raise InputError(f"'{folder}' is not a view folder: it has no transforms.json")
        transforms = read_transforms(path)
        cameras = cameras_from_transforms(transforms, str(path))
        size = (cameras.width, cameras.height)
        rgb, normal, mask = [], [], []
        for i, frame in enumerate(transforms["frames"]):
            file = str(frame.get("file_path", f"rgb/{i:03d}.png"))
            file = file if Path(file).suffix else f"{file}.png"
            picture = _read(folder / file, size)
            encoded = _read(folder / str(frame.get("normal_path", f"normal/{Path(file).name}")), size)
            n, from_normals = normals.decode(encoded[..., :3])
            alpha = picture[..., 3] if picture.shape[-1] == 4 else (from_normals > 0.5).float()
            rgb.append(images.composite(torch.cat([picture[..., :3], alpha[..., None]], dim=-1)))
            normal.append(n * (alpha > 0)[..., None])
            mask.append(alpha)
        return ViewSet(torch.stack(rgb), torch.stack(normal), torch.stack(mask), cameras)

    def rotated_to(self, index: int) -> "ViewSet":
        """The same views with view `index` as the input view: it comes first and its yaw becomes the front.

        World normals and cameras are re-expressed by the rotation about +Y that brings view `index` to azimuth
        0; views are rolled so that it is view 0.
        """
        azimuth = self.cameras.azimuth_elevation()[index, 0]
        turn = yaw_rotation(-azimuth)
        order = [(index + k) % len(self) for k in range(len(self))]
        c2w = self.cameras.c2w.clone()
        c2w[:, :3] = turn @ c2w[:, :3]
        cameras = replace(self.cameras, c2w=c2w)[order]
        return ViewSet(self.rgb[order], normals.rotate(self.normals[order], turn), self.mask[order], cameras)


def yaw_rotation(angle: Tensor) -> Tensor:
    """[3,3] rotation about +Y by `angle` radians, counter-clockwise seen from above (azimuth grows by it)."""
    sin, cos = angle.sin(), angle.cos()
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    return torch.stack([torch.stack(r) for r in ([cos, zero, sin], [zero, one, zero], [-sin, zero, cos])])


def read_picture(path: Path) -> Tensor:
    """A picture file as float [h,w,3], or [h,w,4] (straight alpha) where it has transparency, in [0,1].

    Raises InputError where it is missing, broken or of more than 8 bits per channel.
    """
    if not path.is_file():
        raise InputError(f"view folder is incomplete: '{path}' is missing")
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise InputError(f"'{path}' has mode {opened.mode}: save it with 8 bits per channel")
            alpha = opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info
            pixels = np.asarray(opened.convert("RGBA" if alpha else "RGB")).copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"'{path}' cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels).float() / 255


def _read(path: Path, size: tuple[int, int]) -> Tensor:
    picture = read_picture(path)
    if (picture.shape[1], picture.shape[0]) != size:
        raise InputError(f"'{path}' is {picture.shape[1]}x{picture.shape[0]}, transforms.json says {size[0]}x{size[1]}")
    return picture
