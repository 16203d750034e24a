"""Where workers run: the machine's GPUs, cores and memory, divided into slots of one worker each."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from nova3d.data.jobs.config import GPU_DEVICES, RenderConfig
from nova3d.errors import InputError

_WORKERS_PER_GPU = 2  # one loads and writes while the other draws
_MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class Gpu:
    """One line of `nvidia-smi -L`."""

    index: int
    name: str
    uuid: str


@dataclass(frozen=True)
class Slot:
    """A place for one worker. gpu: the UUID of its GPU, "" on the CPU. threads: its share of the cores. memory_bytes:
    the most its processes may use together."""

    name: str
    gpu: str
    threads: int
    memory_bytes: int


def list_gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine; empty where there is no driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(listing)


def parse_gpus(listing: str) -> list[Gpu]:
    """The GPUs in the output of `nvidia-smi -L`: "GPU 0: NVIDIA A100 (UUID: GPU-...)". MIG devices are left out."""
    gpus = []
    for line in listing.splitlines():
        if line.startswith("GPU ") and "(UUID: " in line:
            head, _, tail = line.partition("(UUID: ")
            number, _, name = head.removeprefix("GPU ").partition(":")
            gpus.append(Gpu(int(number), name.strip(), tail.strip().rstrip(")")))
    return gpus


def pick_gpus(wanted: list[str], found: list[Gpu]) -> list[Gpu]:
    """Those of `found` that `wanted` names by UUID or index, all for []; raises InputError where there is none such."""
    if not found:
        raise InputError("no NVIDIA GPU was found (nvidia-smi -L); use engine.device=cpu")
    known = {gpu.uuid: gpu for gpu in found} | {str(gpu.index): gpu for gpu in found}
    for name in wanted:
        if name not in known:
            raise InputError(f"pool.gpus: there is no GPU '{name}'; there are {', '.join(g.uuid for g in found)}")
    chosen = [known[name] for name in wanted] or found
    return list(dict.fromkeys(chosen))


def slots(config: RenderConfig, neighbours: int = 1) -> list[Slot]:
    """The slots of a job on this machine, which it shares with other jobs like it (`neighbours` in all). Raises
    InputError where a GPU that is asked for is not there."""
    cores = core_count()
    if config.engine.device in GPU_DEVICES:
        per_gpu = config.pool.workers or _WORKERS_PER_GPU
        gpus = pick_gpus(config.pool.gpus, list_gpus())
        places = [(f"gpu{gpu.index}.{i}", gpu.uuid) for i in range(per_gpu) for gpu in gpus]
    else:
        places = [(f"cpu.{i}", "") for i in range(config.pool.workers or cores)]
    threads = max(1, cores // (len(places) * neighbours))
    share = _MEMORY_SHARE * memory_bytes() / (len(places) * neighbours)
    limit = int(config.pool.memory_gb * 1e9 or share)
    return [Slot(name, gpu, threads, limit) for name, gpu in places]


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its control group's where that is less."""
    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total
