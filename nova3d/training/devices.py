"""The device of a process before accelerate is made, which asks for a CPU or takes the current GPU."""

import os

import torch

from nova3d.errors import InputError


def use_device(device: str) -> None:
    """Make a GPU that is named by its index the current one; call it before accelerate's state is made.

    Args:
        device: "cpu", "cuda", "cuda:1".

    Raises:
        InputError: for an index where a launcher gives every process its own GPU.
    """
    chosen = torch.device(device)
    if chosen.type != "cuda" or chosen.index is None:
        return
    if int(os.environ.get("LOCAL_RANK", -1)) != -1:  # by which accelerate tells a launcher's processes
        raise InputError(
            f"device '{device}' names one GPU, but the launcher gives every process its own: use --device cuda, and "
            "CUDA_VISIBLE_DEVICES to choose among the GPUs"
        )
    torch.cuda.set_device(chosen)
