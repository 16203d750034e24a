"""The verb doctor: what this machine has and lacks."""

import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from nova3d.cli import common
from nova3d.errors import InputError
from nova3d.utils import compat, provenance
from nova3d.utils.resources import locate

REQUIRED = ("numpy", "scipy", "diffusers", "transformers", "accelerate", "yaml", "trimesh", "numba")
OPTIONAL = {
    "torchmetrics": "LPIPS in the evaluation",
    "tensorboard": "training curves",
    "objaverse": "downloading training objects",
    "gradio": "the web app",
    "rembg": "cutting objects out of photos",
    "open_clip": "OpenCLIP image encoders",
    "xatlas": "texture atlases with fewer charts",
    "mcubes": "marching cubes by PyMCubes",
    "nerfacc": "fusion on a GPU",
    "tinycudann": "fusion on a GPU",
}


def doctor_parser() -> common.Parser:
    """The arguments of `doctor`."""
    parser = common.parser(
        "Report what this machine has and lacks for nova3d; exit code 2 when something it needs is missing.",
        "nova3d doctor",
    )
    parser.add_argument("--model", default="assets/nova3d-mini", help="model folder to check (default: %(default)s)")
    return parser


def doctor(argv: Sequence[str] | None = None) -> None:
    """Report what this machine has and lacks for nova3d."""
    asked = doctor_parser().parse(argv).model
    faults = [*check_machine(), *check_packages(), *check_model(locate(asked, "model") or Path(asked))]
    if faults:
        raise InputError(f"{len(faults)} problem(s): {'; '.join(faults)}")
    print("all that is needed is here")


def check_machine() -> list[str]:
    """Print interpreter, torch, threads, memory and disk; return what is wrong."""
    show("python", f"{platform.python_version()} ({platform.platform()})")
    try:
        import torch
    except ImportError as error:
        return [f"torch cannot be imported ({error}): run `make setup`"]
    show("torch", f"{torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores")
    show("CUDA", cuda_line(torch))
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    memory = f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB" if pages else "unknown"
    show("memory", f"{memory}; free disk here {shutil.disk_usage('.').free / 2**30:.0f} GiB")
    return []


def cuda_line(torch: Any) -> str:
    """One line on the build of torch and the GPU it sees."""
    build, cuda = torch.version.cuda, torch.cuda
    if not cuda.is_available():
        return f"built for {build}, but no usable GPU was found" if build else "none (a CPU build of torch)"
    properties = cuda.get_device_properties(0)
    return f"{build}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def check_packages() -> list[str]:
    """Print every package's version or absence; return what is wrong."""
    faults = []
    for name in REQUIRED:
        show(name, version(name) if compat.has(name) else "MISSING")
        if not compat.has(name):
            faults.append(f"{name} is missing: run `make setup`")
    try:
        state = compat.ensure_torchvision()
        words = {"absent": "not installed (not needed)", "sound": "sound"}
        show("torchvision", words.get(state, "does not fit this torch; nova3d uses its Python parts"))
    except InputError as error:
        show("torchvision", "BROKEN")
        faults.append(str(error))
    for name, use in OPTIONAL.items():
        show(name, version(name) if compat.has(name) else f"not installed (optional: {use})")
    return faults


def check_model(folder: Path) -> list[str]:
    """Print whether the model is there and fits its checksums; return what is wrong."""
    if not (folder / "model_index.json").is_file():
        show("model", f"{folder}: MISSING")
        return [f"no model at '{folder}' (looked for its model_index.json)"]
    if not (folder / "SHA256SUMS").is_file():
        show("model", f"{folder}: found, without checksums to compare")
        return []
    faults = provenance.verify_checksums(folder)
    show("model", f"{folder}: {'DAMAGED' if faults else 'found, checksums fit'}")
    return faults


def version(package: str) -> str:
    """The version of an importable package, whatever its distribution is called."""
    names = metadata.packages_distributions().get(package, [package])
    try:
        return metadata.version(names[0])
    except metadata.PackageNotFoundError:
        return "found, version unknown"


def show(name: str, value: str) -> None:
    print(f"{name:14}{value}")
