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
# [b,v,3], [(b t v),l,c], [...,3], [n+1], [3,3]. A range such as [0,1] or [-1,1] is not a shape.
SHAPE = re.compile(r"\[(?=[^\]]*[a-zA-Z.])[^\]=]+\]|\[3,3\]|\[4,4\]|\bscalar\b")
DTYPE_OR_RANGE = re.compile(r"\b(float(32|64)?|uint8|bool|dtype)\b|\[-?\d+,-?\d+\]")


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


def sections_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:(?:[ ].*)?\n?)*)", text, re.MULTILINE))


def docstring(found: Callable[..., Any]) -> str:
    return inspect.cleandoc(vars(found).get("__doc__") or "") if inspect.isclass(found) else inspect.getdoc(found) or ""


def beside_fields(found: type) -> dict[str, str]:
    """Field of a dataclass -> the comment beside it, or the docstring below it."""
    form = r'^    (\w+): (?:[^\n]*?# ([^\n]*)|[^\n]*\n    """(.*?)""")'
    texts = re.findall(form, inspect.getsource(found), re.MULTILINE | re.DOTALL)
    return {name: comment or below for name, comment, below in texts}


def tensors(found: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """The tensors that are passed, returned or kept as fields: name and description."""
    text = docstring(found)
    sections = sections_of(text)
    entries = sections.get("Args", "") + sections.get("Attributes", "")
    descriptions = dict(re.findall(r"^    \**(\w+): (.*(?:\n {8}.*)*)", entries, re.MULTILINE))
    if dataclasses.is_dataclass(found):
        descriptions = beside_fields(found) | descriptions
        annotations = {field.name: field.type for field in dataclasses.fields(found)}
    else:
        called = inspect.signature(found)
        annotations = {name: called.parameters[name].annotation for name in parameters(found)}
        if inspect.isfunction(found):
            annotations["Returns"] = called.return_annotation
            descriptions["Returns"] = sections.get("Returns") or text  # a property may have its summary alone
    for name, annotation in annotations.items():
        # "Tensor" alone and as a part of a union or tuple, not what a callback gets
        if re.search(r"\bTensor\b|\bndarray\b", re.sub(r"Callable\[.*\]", "", str(annotation))):
            yield name, descriptions[name]


@pytest.mark.parametrize(("name", "found"), [pytest.param(*pair, id=pair[0]) for pair in callables()])
def test_docstring(name: str, found: Callable[..., Any]) -> None:
    text = docstring(found)
    summary, _, rest = text.partition("\n")
    assert summary and summary[-1] in ".:?", "a first line that is a sentence"
    assert not rest or rest.startswith("\n"), "a blank line below the first"
    sections = sections_of(text)
    assert bool(re.findall(r"^(?:Args|Returns|Raises)\b", text, re.MULTILINE)) <= bool(sections)
    said = beside_fields(found) if dataclasses.is_dataclass(found) else {}
    described = re.findall(r"^    \**(\w+): ", sections.get("Args", "") + sections.get("Attributes", ""), re.MULTILINE)
    if "The other arguments are the parent's." not in text:
        assert not [n for n in parameters(found) if n not in (*described, *said)], "every parameter is described"
    if inspect.isfunction(found) and parameters(found):
        gives = inspect.signature(found).return_annotation not in (None, "None", inspect.Signature.empty)
        assert gives <= bool({"Returns", "Yields"} & set(sections)), "the result is described"


@pytest.mark.parametrize(("name", "found"), [pytest.param(*pair, id=pair[0]) for pair in callables()])
def test_every_tensor_has_a_shape_and_a_dtype_or_range(name: str, found: Callable[..., Any]) -> None:
    described = dict(tensors(found))
    assert not [n for n, text in described.items() if not SHAPE.search(text)], "no shape in brackets"
    assert not [n for n, text in described.items() if not DTYPE_OR_RANGE.search(text)], "neither dtype nor range"


def test_the_public_names_have_tensors() -> None:
    assert sum(len(list(tensors(found))) for _, found in callables()) > 100
