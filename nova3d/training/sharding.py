"""Weights, gradients, moments and averages shared out over the processes: FSDP 2, and DeepSpeed's limits."""

import logging
import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from nova3d.errors import InputError
from nova3d.training.config import TrainConfig
from nova3d.training.ema import EMA, whole

log = logging.getLogger(__name__)


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """FSDP as the launcher's environment asks for it, None where it does not; raises InputError for version 1.

    Weights are gathered and gradients summed in float32, and autocast computes in bfloat16: the arithmetic of a run
    without sharding. accelerate's own choice rounds the weights to bfloat16, and has no autocast to match the inputs.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise InputError("the EMA needs FSDP of version 2: set fsdp_version: 2 in the accelerate config")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return plugin


def check_sharding(config: TrainConfig, accelerator: Accelerator, fsdp_wanted: bool) -> None:
    """What sharded weights cannot do, as an InputError of one line before anything is loaded."""
    kind = accelerator.distributed_type
    if fsdp_wanted and kind != DistributedType.FSDP:
        raise InputError("FSDP shards over GPUs only, and this run has none: launch it with another accelerate config")
    if kind == DistributedType.FSDP and config.optim.ema_device:
        raise InputError("optim.ema_device=cpu is not for sharded weights: their averages are sharded already")
    if kind == DistributedType.FSDP and config.optim.name != "adamw":
        raise InputError(f"optim.name={config.optim.name} is not for sharded weights: it needs whole tensors")
    if kind == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3:
        raise InputError("the EMA needs whole weights: use DeepSpeed's ZeRO stage 2, or FSDP of version 2")
    if kind == DistributedType.DEEPSPEED:
        log.warning("DeepSpeed takes a step before it can be judged: bad steps are reported, but not undone")


def whole_state(model: nn.Module, average: EMA | None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The state of `model` on `device`, no weight sharded; those that `average` follows are its averages. Unsharded
    weights that are there already are not copied. With sharded ones every process must ask."""
    averages = average.weights if average else {}
    return {k: whole(averages.get(k, value)).detach().to(device) for k, value in model.state_dict().items()}
