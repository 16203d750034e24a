"""The multi-view training set: all views of an object, any of them as the input view."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nova3d.data.augment import UNCHANGED, Augmentation, apply
from nova3d.data.shards import ShardReader
from nova3d.errors import InputError
from nova3d.utils.provenance import stable_hash
from nova3d.views import ViewSet


class MultiViewDataset:
    """Objects of one or several shard folders, addressed by (seed, step).

    Every sample is a function of seed and position, so that a run is exact and resumable without state.

    Args:
        shards: one shard folder, or several of one rig.
        input_views: which of the rendered views may serve as the input view; empty means all. Normals and cameras are
            re-expressed in its frame.
        seed: of the run.
        per_object: how many of `input_views` each object has, drawn by its uid. None: all of them.

    Raises:
        InputError: where a folder is not a shard folder or `input_views` has no such view.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        input_views: Sequence[int] = (),
        seed: int = 0,
        per_object: int | None = None,
    ):
        self.reader = ShardReader(shards)
        self.seed = seed
        self.per_object = per_object
        count = len(self.reader.cameras)
        self.input_views = list(input_views) or list(range(count))
        if any(not 0 <= view < count for view in self.input_views):
            raise InputError(f"input_views must lie in 0..{count - 1}, got {list(input_views)}")

    def __len__(self) -> int:
        return len(self.reader)

    def address(self, position: int) -> tuple[int, int]:
        """Return (row, input view) of the sample at `position`; every epoch is a permutation of the objects."""
        epoch, offset = divmod(position, len(self))
        row = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self))[offset]
        view = np.random.default_rng([self.seed, 1, position]).choice(self.views_of(int(row)))
        return int(row), int(view)

    def views_of(self, row: int) -> list[int]:
        """The views of object `row` that may serve as its input view: all input views, or `per_object` of them,
        drawn by a hash of the object's uid. A larger number keeps what a smaller one chose."""
        if self.per_object is None:
            return self.input_views
        digest = stable_hash(str(self.reader.samples[row]["uid"]), 64).to_bytes(8)
        order = np.random.default_rng(list(digest)).permutation(len(self.input_views))
        return [self.input_views[i] for i in order[: self.per_object]]

    def views(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> ViewSet:
        """Read a sample.

        Args:
            row: index of the object.
            input_view: the rendered view that becomes view 0.
            change: an augmentation.

        Returns:
            All views of the changed object, in the frame of the input view.
        """
        return apply(self.reader.views(row), change, input_view).rotated_to(input_view)
