"""Group normalisation at small widths."""

from torch import nn


def set_norm_groups(model: nn.Module, groups: int) -> None:
    """Give every GroupNorm of `model` the same number of groups, in place; parameters do not change.

    SVD's classes fix 32 groups. At a width of 32 that is one channel a group, which normalises away each picture's
    mean colour: small models need fewer. Raises ValueError where a width is not divisible.
    """
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            if module.num_channels % groups:
                raise ValueError(f"norm_groups {groups} does not divide a width of {module.num_channels}")
            module.num_groups = groups
