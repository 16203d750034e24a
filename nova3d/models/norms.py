"""Group normalisation at small widths."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def group_norms(groups: int) -> Iterator[None]:
    """Give every GroupNorm that this thread constructs in the block the same number of groups.

    diffusers' video blocks fix 32 groups. At a width of 32 that is one channel a group, which normalises away each
    picture's mean colour, and widths such as 48 are not divisible: small models need fewer.

    Args:
        groups: groups of every GroupNorm, whatever its constructor is told.

    Raises:
        ValueError: in the block, where a width is not divisible.
    """
    construct, thread = nn.GroupNorm.__init__, threading.get_ident()

    def with_groups(self: nn.GroupNorm, num_groups: int, num_channels: int, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread:
            if num_channels % groups:
                raise ValueError(f"norm_groups {groups} does not divide a width of {num_channels}")
            num_groups = groups
        construct(self, num_groups, num_channels, *args, **kwargs)

    nn.GroupNorm.__init__ = with_groups  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.GroupNorm.__init__ = construct  # type: ignore[method-assign]
