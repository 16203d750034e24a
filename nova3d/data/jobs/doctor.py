"""What a machine has and lacks for a render job: GPUs and their kernels, disk, memory, Blender, Ray."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nova3d.data.jobs import devices
from nova3d.data.jobs.config import GPU_DEVICES, RenderConfig
from nova3d.errors import InputError

# Cycles' CUDA kernels in the bpy wheels 4.5.15 and 5.0.1; any other GPU compiles them from PTX at its first frame.
_BPY_ARCHS = (50, 52, 60, 61, 70, 75, 86, 89, 120)
_LOW_DISK_GB = 20
_LOW_MEMORY_GB = 2


@dataclass(frozen=True)
class Finding:
    """One line of the report. fault: what must be mended before the job can run, "" where nothing must."""

    name: str
    value: str
    fault: str = ""


def examine(config: RenderConfig) -> Iterator[Finding]:
    """Look at this machine with the eyes of `config`."""
    on_gpu = config.engine.device in GPU_DEVICES
    yield from _gpus(config, on_gpu)
    yield from _slots(config)
    yield _disk("disk of out", Path(config.out))
    yield _disk("disk of scratch", Path(config.pool.scratch or tempfile.gettempdir()))
    if config.engine.name == "blender":
        yield _blender(config.engine.python)
    yield _ray(needed=config.pool.launcher == "ray")


def _gpus(config: RenderConfig, needed: bool) -> Iterator[Finding]:
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        yield Finding("GPU", "none (nvidia-smi)", "engine.device asks for a GPU" if needed else "")
        return
    cache = os.environ.get("CUDA_CACHE_PATH") or str(Path.home() / ".nv" / "ComputeCache")
    for line in done.stdout.splitlines():
        name, capability, driver = (part.strip() for part in line.split(","))
        yield Finding("GPU", f"{name}, sm_{capability.replace('.', '')}, driver {driver}{_kernels(capability, cache)}")


def _kernels(capability: str, cache: str) -> str:
    """A note where Cycles has no kernels for a GPU: they run on their own generation, from their minor version on."""
    major, minor = map(int, capability.split("."))
    if any(arch // 10 == major and arch % 10 <= minor for arch in _BPY_ARCHS):
        return ""
    return (
        "; bpy has no Cycles kernels for it and compiles them before the first frame, which may take minutes; they are "
        f"kept in '{cache}'"
    )


def _slots(config: RenderConfig) -> Iterator[Finding]:
    try:
        slots = devices.slots(config)
    except InputError as error:
        yield Finding("workers", "none", str(error))
        return
    share = slots[0].memory_bytes / 1e9
    value = f"{len(slots)} ({slots[0].threads} threads and {share:.1f} GB each) on {devices.core_count()} cores"
    yield Finding("workers", value, f"{share:.1f} GB per worker is too little" if share < _LOW_MEMORY_GB else "")


def _disk(name: str, folder: Path) -> Finding:
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free / 1e9
    return Finding(name, f"{free:.0f} GB free at '{existing}'" + (" (LOW)" if free < _LOW_DISK_GB else ""))


def _blender(python: str) -> Finding:
    if not Path(python).exists():
        return Finding("Blender", f"no interpreter at '{python}'", "make it with `make blender`, or set engine.python")
    code = "import bpy; print(bpy.app.version_string)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("Blender", f"'{python}' cannot be run: {error}", "set engine.python")
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding("Blender", f"bpy cannot be imported: {words}", "make it again with `make blender`")
    return Finding("Blender", f"bpy {done.stdout.strip().splitlines()[-1]} in '{python}'")


def _ray(needed: bool) -> Finding:
    try:
        return Finding("Ray", metadata.version("ray"))
    except metadata.PackageNotFoundError:
        fault = "pool.launcher=ray needs it: pip install 'nova3d[ray]'" if needed else ""
        return Finding("Ray", "not installed (optional: several machines)", fault)
