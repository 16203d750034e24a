"""The training set: 16 views of an object with any of them as the input view."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nova3d.data.augment import UNCHANGED, Augmentation, apply
from nova3d.data.shards import ShardReader
from nova3d.errors import InputError
from nova3d.views import ViewSet


class MultiViewDataset:
    """Objects of one or several shard folders, addressed by (seed, step): exact and resumable, with no state and no
    epoch's copy.

    input_views: which of the rendered views may serve as the input view; normals and cameras are re-expressed in
    its frame. Empty means all.
    """

    def __init__(self, shards: str | Path | Sequence[str | Path], input_views: Sequence[int] = (), seed: int = 0):
        self.reader = ShardReader(shards)
        self.seed = seed
        count = len(self.reader.cameras)
        self.input_views = list(input_views) or list(range(count))
        if any(not 0 <= view < count for view in self.input_views):
            raise InputError(f"input_views must lie in 0..{count - 1}, got {list(input_views)}")

    def __len__(self) -> int:
        return len(self.reader)

    def address(self, position: int) -> tuple[int, int]:
        """(row, input view) of the position-th sample of the run: every epoch is a permutation of the objects."""
        epoch, offset = divmod(position, len(self))
        row = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self))[offset]
        view = np.random.default_rng([self.seed, 1, position]).choice(self.input_views)
        return int(row), int(view)

    def views(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> ViewSet:
        """Object `row`, changed by an augmentation, seen with `input_view` as view 0."""
        return apply(self.reader.views(row), change).rotated_to(input_view)
