"""The verb doctor: what each verb can do on this machine, how fast, and what is missing."""

import functools
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nova3d.cli import common
from nova3d.errors import InputError
from nova3d.utils import compat, provenance
from nova3d.utils.resources import locate

REQUIRED = ("numpy", "scipy", "diffusers", "transformers", "accelerate", "yaml", "trimesh", "numba", "rich")
OPTIONAL = {
    "gradio": ("the app", "app"),
    "av": ("turntables as mp4, views from an mp4", "video"),
    "pillow_heif": ("HEIC pictures of phones", "heic"),
    "xatlas": ("reconstruct texture.atlas=xatlas", "xatlas"),
    "mcubes": ("reconstruct extract.kernel=mcubes", "mcubes"),
    "nerfacc": ("reconstruct on a GPU, sampling.backend", "cuda"),
    "tinycudann": ("reconstruct on a GPU, encoding.backend", ""),
    "torchmetrics": ("evaluate with LPIPS", "eval"),
    "open_clip": ("evaluate with CLIP similarity", "clip"),
    "mesh2sdf": ("evaluate --protocol mesh-sync", "mesh2sdf"),
    "objaverse": ("render source.kind=objaverse", "render"),
    "ray": ("render pool.launcher=ray", "ray"),
    "tensorboard": ("train trackers=[tensorboard]", "train"),
    "wandb": ("train trackers=[wandb]", "wandb"),
    "bitsandbytes": ("train optim.name=adamw8bit", "adam8bit"),
}
"""Package -> what it is for, and the extra that brings it; "" where none can."""
REFERENCE_GFLOPS = 80.0
"""Of one core of the machine on which the CPU seconds below were measured: an AMD EPYC with avx512_bf16."""


@dataclass(frozen=True)
class Ability:
    """What a verb needs beyond the required packages, and how long it takes."""

    what: str
    """What it does, as the table prints it."""
    cpu_seconds: float | None = None
    """Of one core of the reference machine; None where it was not measured."""
    needs: tuple[str, ...] = ()
    """Packages of OPTIONAL without which it cannot run."""
    better: tuple[tuple[str, str], ...] = ()
    """(package, what it adds) of packages of OPTIONAL that it runs without."""


ABILITIES = {
    "generate": Ability(
        "a picture to a mesh, bundled model",
        48,
        better=(("av", "mp4 turntables"), ("pillow_heif", "HEIC pictures")),
    ),
    "sample": Ability("16 views and normal maps, bundled model", 6),
    "reconstruct": Ability("16 views to a mesh, config cpu", 68, better=(("av", "views from an mp4"),)),
    "evaluate": Ability(
        "scores of views and meshes",
        better=(
            ("torchmetrics", "LPIPS"),
            ("open_clip", "CLIP similarity"),
        ),
    ),
    "render": Ability(
        "meshes to shards, raster engine; `nova3d render doctor` says what Blender lacks",
        better=(("objaverse", "Objaverse's lists"),),
    ),
    "train": Ability("a step of the mini model", 2.5, better=(("tensorboard", "training curves"),)),
    "app": Ability("the page in the browser", needs=("gradio",)),
}
"""Verb -> what it needs. The verbs that are not here need what these do."""


def doctor_parser() -> common.Parser:
    """The arguments of `doctor`."""
    parser = common.parser(
        "Report what each verb can do on this machine, how fast, and what is missing and how to get it. The exit code "
        "is 2 when something that all verbs need is missing. `nova3d render doctor` examines a render job.",
        "nova3d doctor",
    )
    parser.add_argument("--model", default="assets/nova3d-mini", help="model folder to check (default: %(default)s)")
    return parser


def doctor(argv: Sequence[str] | None = None) -> None:
    """Report what each verb can do on this machine, how fast, and what is missing and how to get it."""
    asked = doctor_parser().parse(argv).model
    faults = [*check_machine(), *check_packages(), *check_model(locate(asked, "model") or Path(asked))]
    if not any("torch cannot" in fault for fault in faults):
        show_abilities()
    if faults:
        raise InputError(f"{len(faults)} problem(s): {'; '.join(faults)}")
    print("all that is needed is here")


def check_machine() -> list[str]:
    """Print interpreter, torch, threads, memory and disk; return what is wrong."""
    show("python", f"{platform.python_version()} ({platform.platform()})")
    try:
        import torch
    except ImportError as error:
        return [f"torch cannot be imported ({error}): run `make setup` or pip install nova3d"]
    show("torch", f"{torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores")
    show("CUDA", cuda_line(torch))
    show("MPS", "there (untried by this project)" if torch.mps.is_available() else "none")
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


def show_abilities() -> None:
    """Print for each verb whether it can run here, how long it would take, and what would add to it."""
    gflops = measure_gflops()
    print(f"\nwhat the verbs can do here (estimates from {gflops:.0f} GFLOP/s of one core, measured just now):")
    for verb, ability in ABILITIES.items():
        print(f"  {verb:12}{ability_line(ability, gflops)}")
    print("  Times are CPU seconds, scaled from those of another machine. Times on a GPU are not estimated.\n")


def ability_line(ability: Ability, gflops: float) -> str:
    """One line on what a verb can do here.

    Args:
        ability: the verb's.
        gflops: speed of one core, in GFLOP/s.

    Returns:
        The line.
    """
    if missing := [name for name in ability.needs if not compat.has(name)]:
        return f"NO: {', '.join(missing)} is not installed: {'; '.join(map(how_to_get, missing))}"
    line = f"yes: {ability.what}"
    if ability.cpu_seconds is not None:
        line += f", about {ability.cpu_seconds * REFERENCE_GFLOPS / gflops:.2g} s of one core (estimate)"
    for package, adds in ability.better:
        if not compat.has(package):
            line += f"; {adds}: {how_to_get(package)}"
    return line


def how_to_get(package: str) -> str:
    """The command that installs a package of OPTIONAL."""
    extra = OPTIONAL[package][1]
    return f"pip install 'nova3d[{extra}]'" if extra else "built from source, see requirements-cuda.txt of the clone"


def measure_gflops() -> float:
    """The speed of one core in products of float32 matrices, GFLOP/s; a tenth of a second."""
    import torch

    threads, size, best = torch.get_num_threads(), 768, 0.0
    torch.set_num_threads(1)
    try:
        a = torch.rand(size, size)
        for _ in range(4):
            started = time.process_time()
            for _ in range(3):
                a @ a
            best = max(best, 3 * 2 * size**3 / max(time.process_time() - started, 1e-6) / 1e9)
    finally:
        torch.set_num_threads(threads)
    return best


def check_packages() -> list[str]:
    """Print every package's version or absence; return what is wrong."""
    faults = []
    for name in REQUIRED:
        show(name, version(name) if compat.has(name) else "MISSING")
        if not compat.has(name):
            faults.append(f"{name} is missing: run `make setup` or pip install nova3d")
    try:
        state = compat.ensure_torchvision()
        words = {"absent": "not installed (not needed)", "sound": "sound"}
        show("torchvision", words.get(state, "does not fit this torch; nova3d uses its Python parts"))
    except InputError as error:
        show("torchvision", "BROKEN")
        faults.append(str(error))
    for name, (use, _) in OPTIONAL.items():
        show(name, version(name) if compat.has(name) else f"not installed; for {use}: {how_to_get(name)}")
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


# Which distribution an importable package belongs to: one walk over all that is installed.
_distributions = functools.cache(metadata.packages_distributions)


def version(package: str) -> str:
    """The version of an importable package, whatever its distribution is called."""
    names = _distributions().get(package, [package])
    try:
        return metadata.version(names[0])
    except metadata.PackageNotFoundError:
        return "found, version unknown"


def show(name: str, value: str) -> None:
    print(f"{name:14}{value}")
