"""What a user should know of a generated mesh, in sentences: how it was made, and what may be wrong with it."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nova3d import images
from nova3d.cameras import Cameras
from nova3d.utils import resources

if TYPE_CHECKING:
    from nova3d.evaluation.input_view import InputAgreement

# Below these a warning is given. True meshes of scans, measured the same way, reach 0.99 and 29 to 37 dB.
LEAST_INPUT_IOU = 0.93
LEAST_INPUT_PSNR = 20.0  # dB
MOST_CONFLICT = 0.1
MOST_ELEVATION_ERROR_DEG = 5.0

_CUTOUT_WORDS = {
    "alpha": "cut out by the picture's own transparency",
    "plain": "cut out of its background of one colour",
    "model": "cut out by a network (U-2-Net)",
    "mask": "cut out by the mask that was given",
    "none": "not cut out",
}


def model_note(name: str, size: int) -> str:
    """Which model made the views, in a sentence.

    Args:
        name: the model's folder, shipped name or hub id.
        size: pixels of a side of its views.

    Returns:
        The sentence. It says of the bundled model that it is a demonstration.
    """
    if name in resources.names("model") or Path(name).resolve().parent == resources.root() / "assets":
        return (
            f"Views of {size} px by {Path(name).name}, the bundled model: a demonstration of the method, not of the "
            "quality of a large model."
        )
    shown = Path(name).resolve().name if Path(name).is_dir() else name  # reports are handed on: no paths of a machine
    return f"Views of {size} px by the model {shown}."


def picture_notes(cut: images.CutOut, cameras: Cameras) -> list[str]:
    """What was done to the picture, and what is assumed of it.

    Args:
        cut: the picture with its object cut out.
        cameras: of the views; the first is the model's input view.

    Returns:
        The sentences.
    """
    return [
        f"The object was {_CUTOUT_WORDS[cut.method]}; views/mask.png is the mask.",
        f"The picture is taken as orthographic and from {_input_elevation_deg(cameras):.0f} degrees above the object. "
        "In a photograph, near parts are larger.",
    ]


def picture_warnings(cut: images.CutOut, elevation_deg: float, cameras: Cameras) -> list[str]:
    """What may be wrong with the picture.

    Args:
        cut: the picture with its object cut out.
        elevation_deg: degrees from which it looks down on the object, as the user states.
        cameras: of the views; the first is the model's input view.

    Returns:
        The sentences; empty where nothing is wrong.
    """
    lines, assumed = list(cut.warnings), _input_elevation_deg(cameras)
    if abs(elevation_deg - assumed) > MOST_ELEVATION_ERROR_DEG:
        lines.append(
            f"The picture is said to look down by {elevation_deg:g} degrees. The model takes every picture as taken "
            f"from {assumed:.0f} degrees and cannot use this: the object comes out tilted."
        )
    return lines


def _input_elevation_deg(cameras: Cameras) -> float:
    return math.degrees(float(cameras.azimuth_elevation()[0, 1]))


def mesh_notes(health: dict[str, Any], agreement: "InputAgreement | None") -> list[str]:
    """What a user should know of a mesh.

    Args:
        health: the report of the fusion.
        agreement: of the mesh with the picture; None for views that no model made.

    Returns:
        The sentences.
    """
    lines = [
        f"{health['faces']} faces in {_with_plural(health['components'], 'part')}, "
        f"{'watertight' if health['watertight'] else 'not watertight'}; "
        f"{100 * health['unseen_share']:.0f} % of the texture was seen by no view and is a guess."
    ]
    if agreement is None:
        return [*lines, *_depth_notes(health, "extract.depth_ratio")]
    return [
        f"From the camera of the picture, the mesh's outline has an IoU of {agreement.input_iou:.2f} with the "
        f"picture's, and its colours a PSNR of {agreement.input_psnr:.1f} dB on the object.",
        *lines,
        *_texture_notes(health),
        *_depth_notes(health, "sample.depth_ratio"),
        "All views are at elevation 0: top and underside of the object are guesses of the reconstruction.",
    ]


def _texture_notes(health: dict[str, Any]) -> list[str]:
    """Where the texture's colours come from, if views that are trusted paint over others."""
    if "trusted_share" not in health:
        return []
    seen, projected = health["trusted_share"], health.get("mirrored_share", 0.0)
    lines = [
        f"{100 * seen:.0f} % of the texture comes from the picture, where it sees the surface, and "
        f"{100 * (1 - seen - projected):.0f} % from the generated views, or from the fit where none sees it."
    ]
    if projected > 0.005:
        lines.append(
            f"{100 * projected:.0f} % has the picture's colours projected through to the sides and the back: there the "
            "model's own colours were measured to be further from the truth."
        )
    return lines


def _depth_notes(health: dict[str, Any], key: str) -> list[str]:
    """How deep the mesh is, which a picture from the front does not show."""
    if "depth_ratio" not in health:
        return []
    told = "as you said" if health["depth_known"] else f"a guess; where you know it, set {key}"
    return [f"From front to back it is {health['depth_ratio']:.2f} of its longest side in the picture: {told}."]


def mesh_warnings(health: dict[str, Any], agreement: "InputAgreement | None") -> list[str]:
    """What is wrong with a mesh.

    Args:
        health: the report of the fusion.
        agreement: of the mesh with the picture; None where there is none.

    Returns:
        The sentences; empty where nothing is wrong.
    """
    lines = []
    if agreement is not None and agreement.input_iou < LEAST_INPUT_IOU:
        lines.append(f"The mesh does not have the picture's outline (IoU {agreement.input_iou:.2f}).")
    if agreement is not None and not agreement.input_psnr >= LEAST_INPUT_PSNR:
        lines.append(f"The mesh does not have the picture's colours ({agreement.input_psnr:.1f} dB).")
    if agreement is not None and health["components"] > agreement.parts_of_picture:
        lines.append(
            f"The mesh is in {_with_plural(health['components'], 'part')} where the picture shows "
            f"{_with_plural(agreement.parts_of_picture, 'part')}."
        )
    if health["conflict_mean"] > MOST_CONFLICT:
        lines.append(f"The views contradict each other (mean conflict {health['conflict_mean']:.2f}).")
    return lines


def _with_plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
