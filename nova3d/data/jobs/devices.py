"""What a machine offers a render job: GPUs, cores and memory in slots of one worker each, and what is missing."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

from nova3d.data.jobs.config import GPU_DEVICES, RenderConfig
from nova3d.errors import InputError, system_reason
from nova3d.rendering.engine import EngineConfig
from nova3d.utils import compat

_WORKERS_PER_GPU = 2  # one loads and writes while the other draws
_MEMORY_SHARE = 0.9
# Cycles' CUDA kernels in the bpy wheels 4.5.15 and 5.0.1; any other GPU compiles them from PTX at its first frame.
_BPY_ARCHS = (50, 52, 60, 61, 70, 75, 86, 89, 120)
_LOW_DISK_GB = 20
_LOW_MEMORY_GB = 2


@dataclass(frozen=True)
class Gpu:
    """One line of `nvidia-smi -L`."""

    index: int
    name: str
    uuid: str


@dataclass(frozen=True)
class Slot:
    """The share of a machine that one worker gets.

    Attributes:
        name: of the slot, unique on the machine.
        gpu: the UUID of its GPU, "" on the CPU.
        threads: its share of the cores.
        memory_bytes: the most that the worker's processes may use together.
    """

    name: str
    gpu: str
    threads: int
    memory_bytes: int


def slots(config: RenderConfig, schedulers: int = 1) -> list[Slot]:
    """Divide this machine into slots.

    Args:
        config: the job's.
        schedulers: how many schedulers of the job share the machine.

    Returns:
        One slot per worker.

    Raises:
        InputError: where a GPU that the config names is missing, or none is found.
    """
    cores = core_count()
    if config.engine.device in GPU_DEVICES:
        per_gpu = config.pool.workers or _WORKERS_PER_GPU
        gpus = pick_gpus(config.pool.gpus, list_gpus())
        places = [(f"gpu{gpu.index}.{i}", gpu.uuid) for i in range(per_gpu) for gpu in gpus]
    else:
        places = [(f"cpu.{i}", "") for i in range(config.pool.workers or cores)]
    threads = max(1, cores // (len(places) * schedulers))
    share = _MEMORY_SHARE * memory_bytes() / (len(places) * schedulers)
    limit = int(config.pool.memory_gb * 1e9 if config.pool.memory_gb else share)
    return [Slot(name, gpu, threads, limit) for name, gpu in places]


def list_gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs of this machine; none where there is no driver."""
    return parse_gpus(_nvidia_smi("-L"))


def parse_gpus(listing: str) -> list[Gpu]:
    """Parse `nvidia-smi -L`, lines such as "GPU 0: NVIDIA A100 (UUID: GPU-...)". MIG devices are left out."""
    found = re.findall(r"^GPU (\d+): (.*) \(UUID: (\S+)\)", listing, re.MULTILINE)
    return [Gpu(int(index), name, uuid) for index, name, uuid in found]


def pick_gpus(wanted: list[str], found: list[Gpu]) -> list[Gpu]:
    """Return those of `found` that `wanted` names by UUID or index, all for []. Raises InputError for a missing one."""
    if not found:
        raise InputError("no NVIDIA GPU was found (nvidia-smi -L); use engine.device=cpu")
    known = {gpu.uuid: gpu for gpu in found} | {str(gpu.index): gpu for gpu in found}
    for name in wanted:
        if name not in known:
            raise InputError(f"pool.gpus: there is no GPU '{name}'; there are {', '.join(g.uuid for g in found)}")
    return list(dict.fromkeys([known[name] for name in wanted] or found))


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its control group's where that is less."""
    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _nvidia_smi(*arguments: str) -> str:
    """Return what nvidia-smi prints, "" where it is missing or fails."""
    try:
        return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


class Finding(NamedTuple):
    """What was examined, what was found, and what must be fixed before the job can run ("" for nothing)."""

    name: str
    value: str
    fault: str = ""


def examine(config: RenderConfig) -> Iterator[Finding]:
    """Yield what this machine has and lacks for a job: GPUs and their kernels, slots, disk, Blender, Ray."""
    yield from _examine_gpus(needed=config.engine.device in GPU_DEVICES)
    yield _examine_slots(config)
    for name, folder in (("out", config.out), ("scratch", config.pool.scratch or tempfile.gettempdir())):
        path = Path(folder).absolute()
        existing = next(place for place in (path, *path.parents) if place.exists())
        free = shutil.disk_usage(existing).free / 1e9
        yield Finding(f"disk of {name}", f"{free:.0f} GB free at '{existing}'" + (" (LOW)" * (free < _LOW_DISK_GB)))
    if config.engine.name == "blender":
        yield _examine_blender(config.engine)
    if config.pool.launcher == "ray":
        fault = "" if compat.has("ray") else "pool.launcher=ray needs it: pip install 'nova3d[ray]'"
        yield Finding("Ray", "not installed" if fault else metadata.version("ray"), fault)


def _examine_gpus(needed: bool) -> Iterator[Finding]:
    listing = _nvidia_smi("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
    if not listing:
        yield Finding("GPU", "none (nvidia-smi)", "engine.device asks for a GPU" if needed else "")
    cache = os.environ.get("CUDA_CACHE_PATH") or str(Path.home() / ".nv" / "ComputeCache")
    for line in listing.splitlines():
        name, capability, driver = (part.strip() for part in line.split(","))
        major, minor = map(int, capability.split("."))
        note = ""  # kernels run on their own generation, from their minor version on
        if not any(arch // 10 == major and arch % 10 <= minor for arch in _BPY_ARCHS):
            note = "; bpy has no Cycles kernels for it and compiles them before the first frame, which may take minutes"
            note += f"; they are kept in '{cache}'"
        yield Finding("GPU", f"{name}, sm_{major}{minor}, driver {driver}{note}")


def _examine_slots(config: RenderConfig) -> Finding:
    try:
        found = slots(config)
    except InputError as error:
        return Finding("workers", "none", str(error))
    share = found[0].memory_bytes / 1e9
    value = f"{len(found)} ({found[0].threads} threads and {share:.1f} GB each) on {core_count()} cores"
    return Finding("workers", value, f"{share:.1f} GB per worker is too little" if share < _LOW_MEMORY_GB else "")


def check_engine(config: EngineConfig) -> None:
    """Check that the program which an engine starts is on this machine, before anything is planned or started.

    Args:
        config: the engine's.

    Raises:
        InputError: where it is missing.
    """
    if config.name == "blender":
        from nova3d.rendering.blender import find_interpreter

        find_interpreter(config)


def _examine_blender(config: EngineConfig) -> Finding:
    from nova3d.rendering.blender import find_interpreter, interpreter_remedy

    try:
        python = find_interpreter(config)
    except InputError as error:
        return Finding("Blender", "no interpreter", str(error))
    code, fault = "import bpy; print(bpy.app.version_string)", interpreter_remedy()
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("Blender", f"'{python}' cannot be run: {system_reason(error)}", fault)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding("Blender", f"bpy cannot be imported: {words}", fault)
    return Finding("Blender", f"bpy {done.stdout.strip().splitlines()[-1]} in '{python}'")
