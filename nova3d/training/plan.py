"""The cost of a run before it starts: parameters, memory, arithmetic; then one real step.

The step's memory is counted: a micro-step, backward pass included, runs on tensors without storage while every
allocation is followed. Fragmentation and the workspaces of kernels are not included.
"""

import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nova3d.cameras import preset
from nova3d.errors import InputError
from nova3d.models.unet import NovaUNet
from nova3d.training.config import TrainConfig, check, micro_steps
from nova3d.training.data import Prefetcher
from nova3d.training.devices import use_device
from nova3d.training.logs import LossBySigma
from nova3d.training.networks import build_unet
from nova3d.training.optim import moment_bytes
from nova3d.training.precision import resolve

GIB = 2**30
SVD_VAE, SVD_CLIP = 97_746_379, 632_076_800  # parameters of SVD's autoencoder and of its CLIP ViT-H
ASSUMED_MFU = 0.35


@dataclass(frozen=True)
class Plan:
    """The cost of one process.

    Attributes:
        parameters: of the UNet.
        trained: parameters that are trained.
        new: parameters that SVD does not have.
        weights: bytes.
        gradients: bytes.
        optimizer: bytes of its state.
        averages: bytes of the weight averages.
        frozen: bytes of the frozen networks.
        activations: bytes.
        flops: of a step's forward and backward passes, as model FLOPs utilisation (MFU) counts them: recomputed
            activations are left out.
        micro_steps: per step.
    """

    parameters: int
    trained: int
    new: int
    weights: int
    gradients: int
    optimizer: int
    averages: int
    frozen: int
    activations: int
    flops: float
    micro_steps: int

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.frozen + self.activations

    def lines(self, peak: float | None = None) -> Iterator[str]:
        """The plan as a table.

        Args:
            peak: the device's TFLOP/s; None leaves the time of a step out.

        Yields:
            The lines.
        """
        yield f"parameters    {self.parameters:>14,}, {self.trained:,} trained, {self.new:,} of them new"
        for name in ("weights", "gradients", "optimizer", "averages", "frozen", "activations", "memory"):
            yield f"{name:<13} {getattr(self, name) / GIB:>14.2f} GiB"
        yield f"micro-steps   {self.micro_steps:>14}"
        yield f"arithmetic    {self.flops / 1e12:>14.1f} TFLOP per step and process"
        if peak:
            seconds = self.flops / (peak * 1e12 * ASSUMED_MFU)
            yield f"step          {seconds:>14.1f} s, an estimate at {ASSUMED_MFU:.0%} of {peak:g} TFLOP/s"


def plan(config: TrainConfig, size: int, processes: int = 1, device: str = "cpu") -> Plan:
    """The cost of a config without sharding.

    A UNet that is read from files is planned with the sizes of `config.model`. The frozen networks count as SVD's.

    Args:
        config: of the run.
        size: side of the pictures, in pixels.
        processes: that share the batch.
        device: of the run; the precision "auto" depends on it.

    Returns:
        The plan.

    Raises:
        InputError: for a config that cannot run.
    """
    check(config)
    views, side = len(preset(config.pipeline.camera_preset, size)), size // 8
    bf16 = resolve(config.mixed_precision, torch.device(device).type) == "bf16"
    micro = micro_steps(config, processes)
    with FakeTensorMode():
        unet = build_unet(config.model, side).train()
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        parameters = sum(p.numel() for p in unet.parameters())
        trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
        new = sum(unet.get_parameter(name).numel() for name in unet.new_parameter_names)
        inputs = _inputs(unet, config.batch_size, views, side)
        for parameter in unet.parameters():  # counted by themselves: they are there from one micro-step to the next
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with _Allocations() as allocations, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            unet(*inputs).sample.float().square().mean().backward()
    with torch.device("meta"):
        bare = build_unet(config.model, side).to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            bare(*_inputs(bare, 1, views, side))
    optim = config.optim
    averages = 0 if optim.ema_device == "cpu" else 4 * trained * (1 + len(optim.ema_profiles))
    return Plan(
        parameters=parameters,
        trained=trained,
        new=new,
        weights=4 * parameters,
        gradients=4 * trained,
        optimizer=trained * moment_bytes(optim.name),
        averages=averages,
        frozen=_frozen_bytes(config, bf16),
        activations=allocations.peak,
        flops=3.0 * counter.get_total_flops() * config.batch_size * micro,
        micro_steps=micro,
    )


def dry_run(config: TrainConfig, device: str, peak: float | None = None) -> Iterator[str]:
    """The plan, then what one real step took. No file is written.

    Args:
        config: of the run.
        device: "cpu", "cuda", "cuda:1".
        peak: the device's TFLOP/s; None leaves the estimated time of a step out.

    Yields:
        The lines of a report.

    Raises:
        InputError: where the run could not start.
    """
    from nova3d.data.multiview import MultiViewDataset
    from nova3d.training.setup import prepare
    from nova3d.training.trainer import train_step

    try:
        size = MultiViewDataset(config.data.shards, config.data.input_views).reader.cameras.width
    except InputError:
        size = 256  # the estimate does not need the data; the step below raises the error
    processes = _processes(device)
    effective = config.batch_size * processes * micro_steps(config, processes)
    yield f"estimate for pictures of {size} pixels, {processes} processes, effective batch {effective}"
    yield from plan(config, size, processes, device).lines(peak)
    run = prepare(config, device)
    where = run.accelerator.device
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    started = time.perf_counter()
    schedule = run.loader.global_batch.schedule(0, 1)
    with Prefetcher(run.loader, schedule, config.data.prefetch, config.data.threads) as batches:
        values, _ = train_step(run, 0, batches, LossBySigma(where), lambda: False)
    if where.type == "cuda":
        torch.cuda.synchronize(where)
        yield f"memory        {torch.cuda.max_memory_allocated(where) / GIB:>14.2f} GiB allocated at most, measured"
    yield f"first step    {time.perf_counter() - started:>14.1f} s, measured, warm-up included"
    yield f"loss          {values.get('loss', float('nan')):>14.4f}"


def _frozen_bytes(config: TrainConfig, bf16: bool) -> int:
    if not config.svd:
        return 0
    encoder_needed = not config.data.cache or bool(config.validate_every)
    return 4 * SVD_VAE + (SVD_CLIP * (2 if bf16 else 4) if encoder_needed else 0)


def _inputs(unet: NovaUNet, b: int, views: int, side: int) -> tuple[Tensor, ...]:
    width = int(unet.config.cross_attention_dim)
    one = torch.ones(b)
    return torch.ones(b, 2, views, 8, side, side), one, torch.ones(b, 1, width), one, torch.ones(b, views, 2)


def _processes(device: str) -> int:
    from accelerate import PartialState

    use_device(device)
    return int(PartialState(cpu=device == "cpu").num_processes)  # the run's too: the first call makes it


class _Allocations(TorchDispatchMode):
    """Follows the storages that operations make while it is active; `peak` is the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(args):
            if isinstance(leaf, Tensor):
                self._known.add(leaf.untyped_storage())  # in-place results and views are no new memory
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(storage)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._release, storage.nbytes())
        return result

    def _release(self, size: int) -> None:
        self.alive -= size
