"""Public names and what they return have docstrings in Google style."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PUBLIC = {
    "nova3d": ["generate", "reconstruct", "Nova3DPipeline", "NovaUNet", "ViewSet", "Cameras", "render_object"],
    "nova3d.generation": ["Generated", "default_config"],
    "nova3d.reconstruction": ["reconstruct_folder", "Reconstructed"],
    "nova3d.cameras": ["look_from", "orbit", "preset"],
    "nova3d.normals": ["encode", "decode", "to_world", "to_camera", "rotate"],
    "nova3d.pipeline": ["Nova3DOutput"],
    "nova3d.models": ["AlignmentAttention"],
    "nova3d.models.svd": ["LoadReport"],
    "nova3d.diffusion": [
        "precondition",
        "weight",
        "loss",
        "denoised",
        "NoiseSchedule",
        "karras_sigmas",
        "initial_noise",
        "sample",
        "solver_step",
        "view_scales",
        "guide",
    ],
    "nova3d.fusion": ["FusionResult"],
    "nova3d.evaluation": [
        "score",
        "compare",
        "Table",
        "Comparison",
        "psnr",
        "psnr_union",
        "foreground_psnr",
        "ssim",
        "foreground_ssim",
        "registered_psnr",
        "normal_angle",
        "mask_iou",
        "task_iou",
        "chamfer",
        "volume_iou",
        "f_score",
        "normal_consistency",
        "Lpips",
        "ClipSimilarity",
    ],
    "nova3d.layouts": ["read", "load", "detect", "normalise", "check_for_fusion", "Assume", "Loaded", "Placement"],
}


CALLED = ("__call__", "forward")


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes, and the public methods that these classes define themselves."""
    for module, names in PUBLIC.items():
        for name in names:
            found = getattr(importlib.import_module(module), name)
            yield f"{module}.{name}", found
            if not inspect.isclass(found):
                continue
            for method, value in vars(found).items():
                inherited = any(hasattr(base, method) for base in found.__bases__ if base is not object)
                if inherited and method not in CALLED:
                    continue  # what a base class of diffusers or torch documents
                function = inspect.unwrap(getattr(value, "__func__", value))
                ours = inspect.isfunction(function) and function.__module__.startswith("nova3d.")
                if ours and (not method.startswith("_") or method in CALLED):
                    yield f"{module}.{name}.{method}", function


def parameters(found: Callable[..., Any]) -> list[str]:
    """What a caller passes; of a dataclass its fields."""
    if dataclasses.is_dataclass(found):
        return [field.name for field in dataclasses.fields(found) if not field.name.startswith("_")]
    if inspect.isclass(found) and (issubclass(found, Exception) or "__init__" not in vars(found)):
        return []
    return [name for name in inspect.signature(found).parameters if name not in ("self", "cls")]


@pytest.mark.parametrize(("name", "found"), [pytest.param(*pair, id=pair[0]) for pair in callables()])
def test_docstring(name: str, found: Callable[..., Any]) -> None:
    text = inspect.cleandoc(vars(found).get("__doc__") or "") if inspect.isclass(found) else inspect.getdoc(found) or ""
    summary, _, rest = text.partition("\n")
    assert summary and summary[-1] in ".:?", "a first line that is a sentence"
    assert not rest or rest.startswith("\n"), "a blank line below the first"
    sections = dict(re.findall(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:(?:[ ].*)?\n?)*)", text, re.MULTILINE))
    assert bool(re.findall(r"^(?:Args|Returns|Raises)\b", text, re.MULTILINE)) <= bool(sections)
    if dataclasses.is_dataclass(found):
        source = inspect.getsource(found)  # a field may have its own docstring, or a comment beside it
        said = [n for n in parameters(found) if re.search(rf"^\s*{n}: .*(#.*|\n\s*\"\"\")", source, re.MULTILINE)]
    else:
        said = []
    described = re.findall(r"^    \**(\w+): ", sections.get("Args", "") + sections.get("Attributes", ""), re.MULTILINE)
    if "The other arguments are the parent's." not in text:
        assert not [n for n in parameters(found) if n not in (*described, *said)], "every parameter is described"
    if inspect.isfunction(found) and parameters(found):
        gives = inspect.signature(found).return_annotation not in (None, "None", inspect.Signature.empty)
        assert gives <= bool({"Returns", "Yields"} & set(sections)), "the result is described"
