"""ViewSet: views of one object with normals, masks and cameras; the data passed between the stages.

Folder format: `rgb/000.png ...` (straight-alpha RGBA), `normal/000.png ...` (encoded world normals, RGB),
`transforms.json` (see `nova3d.transforms`; frames in view order) and `record.json` (provenance). `detail/` is a view
folder of its own: trusted views again, at a resolution of their own.
"""

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nova3d import images, normals
from nova3d.calibration import Calibration
from nova3d.cameras import Cameras
from nova3d.errors import InputError
from nova3d.transforms import (
    cameras_from_transforms,
    cameras_to_transforms,
    read_transforms,
    trusted_frames,
    write_transforms,
)
from nova3d.utils.files import check_folder, write_json, writing
from nova3d.utils.limits import MAX_VIEW_MEGAPIXELS

DETAIL_FOLDER = "detail"
_SAME_POSE = 1e-4  # of a pose's entries, which a file holds to float32
_THUMBNAIL, _STRIP = 64, 16  # pixels of a view in a notebook, and views in a row
_SAME_PIXELS = 0.05  # of the intrinsics, at the views' resolution


@dataclass(frozen=True)
class ViewSet:
    """v views of one object.

    Attributes:
        rgb: [v,h,w,3] float in [0,1], composited on white.
        normals: [v,h,w,3] float, unit vectors in the world frame, zero on background and where the normal is not known.
            Views without normal maps have zeros everywhere (`has_normals`). The fusion's normal loss and every measure
            of angles skip such pixels.
        mask: [v,h,w] float coverage in [0,1], the only thing that says what is object.
        cameras: v cameras of h x w pixels.
        trusted: whether each view shows what is true, as the input picture and every view of a capture do, or what a
            model made. Empty: nothing is known, and all views count alike.
        calibration: how far views that are not trusted can be believed; None where it was not measured.
    """

    rgb: Tensor
    normals: Tensor
    mask: Tensor
    cameras: Cameras
    trusted: tuple[bool, ...] = ()
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        v, h, w = self.mask.shape
        expected = (len(self.cameras), self.cameras.height, self.cameras.width)
        if (v, h, w) != expected or self.rgb.shape != (v, h, w, 3) or self.normals.shape != (v, h, w, 3):
            raise ValueError(
                f"shapes disagree: rgb {tuple(self.rgb.shape)}, normals {tuple(self.normals.shape)}, "
                f"mask {tuple(self.mask.shape)}, cameras {expected}"
            )
        if self.trusted and len(self.trusted) != v:
            raise ValueError(f"trusted has {len(self.trusted)} values for {v} views")

    @staticmethod
    def from_rgba(
        rgba: Tensor,
        normals: Tensor | None,
        cameras: Cameras,
        size: int | None = None,
        trusted: tuple[bool, ...] = (),
    ) -> "ViewSet":
        """Views from cut-out pictures.

        Args:
            rgba: [v,h,w,4] float in [0,1], straight alpha; alpha becomes the mask.
            normals: [v,h,w,3] float, unit world normals or zero, cut to the mask; None where there are none.
            cameras: v cameras of h x w pixels.
            size: pixels of the pictures' longer side in the result; None keeps theirs.
            trusted: see `ViewSet`.

        Returns:
            The views, with cameras of the same field of view.
        """
        surface = torch.zeros_like(rgba[..., :3]) if normals is None else normals * (rgba[..., 3:] > 0)
        if size is not None and size != max(cameras.width, cameras.height):
            width, height = scaled_size(cameras.width, cameras.height, size)
            rgba, surface = images.resize(rgba, width, height), _resize_normals(surface, width, height)
            cameras = cameras.resized(width, height)
        return ViewSet(images.composite(rgba), surface * (rgba[..., 3:] > 0), rgba[..., 3], cameras, trusted)

    def __len__(self) -> int:
        return len(self.cameras)

    def __repr__(self) -> str:
        camera = self.cameras
        parts = [f"{len(self)} views", f"{camera.width} x {camera.height} px", camera.model]
        parts += ["with normals" if self.has_normals else "no normals"]
        parts += [f"{sum(self.trusted)} trusted"] if self.trusted else []
        return f"ViewSet({', '.join(parts)}, {self.mask.device})"

    def _repr_html_(self) -> str:
        """What a notebook shows: a strip of the views, normal maps below."""
        file = io.BytesIO()
        sheet = self.resized(_THUMBNAIL).contact_sheet(columns=min(len(self), _STRIP))
        Image.fromarray(images.to_uint8(sheet)).save(file, format="PNG")
        uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        image = f'<img src="{uri}" alt="the views" style="max-width:100%">'
        return f'<figure style="margin:0">{image}<figcaption>{self!r}</figcaption></figure>'

    @property
    def has_normals(self) -> bool:
        """Whether any pixel of any view has a normal."""
        return bool((self.normals != 0).any())

    @property
    def trusted_among_others(self) -> Tensor:
        """bool [v], on the views' device: trusted views among others that are not; nowhere true where all are alike."""
        mixed = any(self.trusted) and not all(self.trusted)
        return torch.tensor(self.trusted if mixed else [False] * len(self), device=self.mask.device)

    def __getitem__(self, index: slice | Sequence[int]) -> "ViewSet":
        """The views at `index`, always with a view axis."""
        chosen = self.trusted[index] if isinstance(index, slice) else [self.trusted[i] for i in index if self.trusted]
        return replace(
            self,
            rgb=self.rgb[index],
            normals=self.normals[index],
            mask=self.mask[index],
            cameras=self.cameras[index],
            trusted=tuple(chosen),
        )

    def to(self, device: torch.device | str) -> "ViewSet":
        """The same views on a device.

        Args:
            device: where all tensors go.

        Returns:
            New views; tensors that are there already are shared.
        """
        return replace(
            self,
            rgb=self.rgb.to(device),
            normals=self.normals.to(device),
            mask=self.mask.to(device),
            cameras=self.cameras.to(device),
        )

    def straight_alpha(self, index: int) -> Tensor:
        """One view's colours without the white they were composited on.

        Args:
            index: the view.

        Returns:
            [h,w,4] float in [0,1], RGBA with straight alpha.
        """
        return _straight_alpha(self.rgb[index], self.mask[index])

    @property
    def rgba(self) -> Tensor:
        """`straight_alpha` of all views: [v,h,w,4] float in [0,1]."""
        return _straight_alpha(self.rgb, self.mask)

    def contact_sheet(self, columns: int = 8) -> Tensor:
        """All views in one picture, on white: rows of colours, each with its row of normal maps below.

        Args:
            columns: views in a row.

        Returns:
            [H,W,3] float in [0,1]; without normal maps only colours.
        """
        cover = self.mask[..., None]
        kinds = [self.rgb, (self.normals + 1) / 2 * cover + (1 - cover)][: 1 + self.has_normals]
        rows = []
        for start in range(0, len(self), columns):
            for pictures in kinds:
                row = pictures[start : start + columns]
                rows += [row, row.new_ones(columns - len(row), *row.shape[1:])]
        return images.grid(torch.cat(rows), columns)

    def resized(self, size: int | None) -> "ViewSet":
        """The same views in another resolution.

        Args:
            size: pixels along the longer side; None keeps what they have.

        Returns:
            The views; `self` where they have that size.
        """
        if size is None or size == max(self.cameras.width, self.cameras.height):
            return self
        rgba = self.rgba
        scaled = ViewSet.from_rgba(rgba, self.normals, self.cameras, size, self.trusted)
        return replace(scaled, calibration=self.calibration)

    def rotated(self, rotation: Tensor) -> "ViewSet":
        """The same pictures in a rotated world.

        Args:
            rotation: [3,3] float32 orthonormal, from the old world frame to the new one.

        Returns:
            The views with cameras and world normals in the new frame.
        """
        c2w = self.cameras.c2w.clone()
        c2w[:, :3] = rotation @ c2w[:, :3]
        return replace(self, normals=normals.rotate(self.normals, rotation), cameras=replace(self.cameras, c2w=c2w))

    def rotated_to(self, index: int) -> "ViewSet":
        """The same views with view `index` as the input view.

        World normals and cameras are re-expressed by the rotation about +Y that brings view `index` to azimuth 0.
        Views are rolled so that it is view 0.

        Args:
            index: the view that becomes view 0.

        Returns:
            The views in the new world frame.
        """
        rotation = yaw_rotation(-self.cameras.azimuth_elevation()[index, 0])
        return self[[(index + k) % len(self) for k in range(len(self))]].rotated(rotation)

    def save(
        self, folder: str | Path, record: Mapping[str, Any] | None = None, detail: "ViewSet | None" = None
    ) -> Path:
        """Write the folder format.

        Colour is stored un-premultiplied from the white composite, so that loading gives the same composite to
        within rounding. Every file is written aside and renamed, transforms.json after the pictures.

        Args:
            folder: made where it is missing; other files in it stay, but not the detail of earlier views.
            record: becomes record.json and the PNGs' text chunks.
            detail: trusted views at a resolution of their own, for `load_detail`.

        Returns:
            The folder.

        Raises:
            InputError: where the folder cannot be written.
        """
        folder = Path(folder)
        text = {"nova3d": json.dumps(record, sort_keys=True, default=str)} if record else None
        transforms = cameras_to_transforms(self.cameras)
        with writing(f"views to '{folder}'"):
            if (folder / DETAIL_FOLDER / "transforms.json").is_file():  # and no other folder of that name
                shutil.rmtree(folder / DETAIL_FOLDER)
            for name in ("rgb", "normal"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            for i, frame in enumerate(transforms["frames"]):
                images.save_image(folder / f"rgb/{i:03d}.png", self.straight_alpha(i), text)
                images.save_image(folder / f"normal/{i:03d}.png", normals.encode(self.normals[i]).cpu().numpy(), text)
                frame["file_path"] = f"rgb/{i:03d}.png"
                frame["normal_path"] = f"normal/{i:03d}.png"
                if self.trusted:
                    frame["trusted"] = self.trusted[i]
            if self.calibration is not None:
                transforms["calibration"] = self.calibration.to_dict()
            write_transforms(folder / "transforms.json", transforms)
            if record:
                write_json(folder / "record.json", record)
        if detail is not None:
            detail.save(folder / DETAIL_FOLDER, record)
        return folder

    @staticmethod
    def load(folder: str | Path, as_they_are: bool = False, max_megapixels: float = MAX_VIEW_MEGAPIXELS) -> "ViewSet":
        """Read the folder format, whoever wrote it.

        A frame's `file_path` may lack its suffix; `normal_path` defaults to the same name under `normal/`. RGB
        pictures without alpha take their mask from the normal map.

        Args:
            folder: a folder with a transforms.json and the pictures that it names.
            as_they_are: keep the pixels of RGB pictures without alpha, and do not put them on white.
            max_megapixels: of one view; all together may have VIEWS_TOGETHER times as many.

        Returns:
            The views, on the CPU.

        Raises:
            InputError: naming the first thing wrong: a missing folder, file or frame, or a wrong size.
        """
        folder = check_folder(folder, "view folder")
        path = folder / "transforms.json"
        if not path.is_file():
            raise InputError(f"'{folder}' is not a view folder: it has no transforms.json")
        transforms = read_transforms(path)
        cameras = cameras_from_transforms(transforms, str(path))
        images.check_together([(cameras.width, cameras.height)] * len(cameras), str(path), max_megapixels)
        rgba, surface, opaque = [], [], []
        for i, frame in enumerate(transforms["frames"]):
            file = str(frame.get("file_path", f"rgb/{i:03d}.png"))
            file = file if Path(file).suffix else f"{file}.png"
            picture = _read_image(folder / file, cameras, max_megapixels)
            normal_file = folder / str(frame.get("normal_path", f"normal/{Path(file).name}"))
            encoded = _read_image(normal_file, cameras, max_megapixels)
            normal, from_normals = normals.decode(encoded[..., :3])
            alpha = picture[..., 3] if picture.shape[-1] == 4 else (from_normals > 0.5).float()
            if picture.shape[-1] == 3:
                opaque.append(i)
            rgba.append(torch.cat([picture[..., :3], alpha[..., None]], dim=-1))
            surface.append(normal)
        trusted = trusted_frames(transforms["frames"], str(path))
        views = ViewSet.from_rgba(torch.stack(rgba), torch.stack(surface), cameras, trusted=trusted)
        if as_they_are and opaque:
            rgb = views.rgb.clone()
            for i in opaque:
                rgb[i] = rgba[i][..., :3]
            views = replace(views, rgb=rgb)
        if "calibration" not in transforms:
            return views
        return replace(views, calibration=Calibration.from_dict(transforms["calibration"], str(path)))


def _straight_alpha(rgb: Tensor, mask: Tensor) -> Tensor:
    """Colours [...,3] on white and masks [...] to RGBA [...,4] with straight alpha."""
    quantised = (mask.clamp(0, 1) * 255).round() / 255  # what the file will hold: divide by that, not by the float
    return images.uncomposite(rgb, quantised[..., None])


def load_detail(folder: str | Path, max_megapixels: float = MAX_VIEW_MEGAPIXELS) -> ViewSet | None:
    """The trusted views that a view folder holds at a resolution of their own.

    Args:
        folder: a view folder, as `ViewSet.load` reads it.
        max_megapixels: as `ViewSet.load`.

    Returns:
        The views in its folder `detail`, on the CPU; None where there is no such folder.

    Raises:
        InputError: as `ViewSet.load`.
    """
    detail = Path(folder) / DETAIL_FOLDER
    return ViewSet.load(detail, max_megapixels=max_megapixels) if detail.is_dir() else None


def match_detail(views: ViewSet, detail: ViewSet) -> list[int]:
    """Which views the views of a detail show again: those of the same pose and field of view.

    Args:
        views: the views.
        detail: trusted views at another resolution.

    Returns:
        For each view of `detail` the index of the view that it shows.

    Raises:
        InputError: where a view of `detail` is none of the trusted views.
    """
    cameras, scaled = views.cameras, detail.cameras.resized(views.cameras.width, views.cameras.height).to("cpu")
    found = []
    for i in range(len(detail)):
        same = (cameras.c2w.cpu() - scaled.c2w[i]).abs().amax(dim=(1, 2)) < _SAME_POSE
        same &= ((cameras.intrinsics.cpu() - scaled.intrinsics[i]).abs() < _SAME_PIXELS).all(dim=1)
        same &= torch.tensor(views.trusted or [False] * len(views))
        if cameras.model != scaled.model or not bool(same.any()):
            raise InputError(f"view {i} of the detail has the camera of none of the trusted views")
        found.append(int(same.nonzero()[0]))
    return found


def yaw_rotation(angle: Tensor) -> Tensor:
    """Rotation about +Y, counter-clockwise seen from above, so that azimuths grow by its angle.

    Args:
        angle: scalar float, radians.

    Returns:
        [3,3] float.
    """
    sin, cos = angle.sin(), angle.cos()
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    return torch.stack([torch.stack(r) for r in ([cos, zero, sin], [zero, one, zero], [-sin, zero, cos])])


def scaled_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height, in pixels, of a picture scaled so that its longer side has `size` pixels."""
    share = size / max(width, height)
    return max(1, round(width * share)), max(1, round(height * share))


def _resize_normals(surface: Tensor, width: int, height: int) -> Tensor:
    mean = images.interpolate(surface, width, height)
    # A mean of less than a quarter of a unit is mostly background, or of normals that contradict each other.
    return F.normalize(mean, dim=-1) * (mean.norm(dim=-1, keepdim=True) > 0.25)


def _read_image(path: Path, cameras: Cameras, max_megapixels: float) -> Tensor:
    w, h = images.image_size(path)
    if w * h > 0 and (w, h) != (cameras.width, cameras.height):
        raise InputError(f"'{path}' is {w}x{h}, transforms.json says {cameras.width}x{cameras.height}")
    return images.read_image(path, max_megapixels=max_megapixels)
