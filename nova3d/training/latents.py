"""What training reads of an object: its views as pictures (from shards) or as latents (from a cache on disk)."""

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nova3d.data.augment import UNCHANGED, Augmentation, AugmentConfig, draw
from nova3d.data.multiview import MultiViewDataset
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder, encode_moments

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One object seen from one input view, on the CPU.

    picture [3,H,W] in [-1,1]: the input view on white. cameras [v,2]: azimuth relative to the input view and elevation,
    radians. Either frames [t,v,3,H,W] in [-1,1], or moments [t,v,8,h,w] of the autoencoder's posterior. embeds [1,d]:
    the picture's CLIP embedding, where a cache holds it. condition [t,v,4,h,w]: the unscaled latents of the condition
    `inflated`, where a cache holds them. augmented: the object is not as it was rendered.
    """

    uid: str
    input_view: int
    picture: Tensor
    cameras: Tensor
    frames: Tensor | None = None
    moments: Tensor | None = None
    embeds: Tensor | None = None
    condition: Tensor | None = None
    augmented: bool = False


class Source(Protocol):
    """Where items come from."""

    dataset: MultiViewDataset

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Object `row` of the dataset, changed; raises InputError where it cannot be read or changed."""
        ...


class ShardSource:
    """Items with pictures, straight from shards."""

    def __init__(self, dataset: MultiViewDataset):
        self.dataset = dataset

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        views = self.dataset.views(row, input_view, change)
        frames = torch.stack([views.rgb * 2 - 1, views.normals]).permute(0, 1, 4, 2, 3)
        cameras = views.cameras.azimuth_elevation()
        uid, augmented = self.dataset.reader.samples[row]["uid"], change != UNCHANGED
        return Item(uid, input_view, frames[0, 0], cameras, frames=frames, augmented=augmented)


class ItemReader:
    """The samples of a run by position, augmented as drawn for the position, with the policy for objects that cannot be
    read.

    on_corrupt "fail": InputError. "skip": the next readable object takes the place, the same one on any machine; every
    lost object is named in the log once. `skipped` counts the replacements.
    """

    def __init__(
        self,
        source: Source,
        on_corrupt: str = "fail",
        attempts: int = 16,
        augment: AugmentConfig | None = None,
    ):
        self.source, self.on_corrupt, self.attempts = source, on_corrupt, attempts
        self.augment = augment or AugmentConfig()
        self.skipped = 0
        self._named: set[int] = set()

    def __getitem__(self, position: int) -> Item:
        """The position-th sample of the run; see MultiViewDataset.address."""
        dataset = self.source.dataset
        row, view = dataset.address(position)
        change = draw(self.augment, dataset.seed, position)
        for attempt in range(self.attempts):
            other = (row + attempt) % len(dataset)
            try:
                return self.source.load(other, view, change)
            except InputError as error:
                if self.on_corrupt == "fail":
                    raise
                self.skipped += 1
                if other not in self._named:
                    self._named.add(other)
                    log.warning("object '%s' is left out: %s", dataset.reader.samples[other]["uid"], error)
        raise InputError(f"{self.attempts} objects in a row cannot be read, the last is row {other}; mend the shards")


def check_shards(dataset: MultiViewDataset) -> None:
    """Read the first and the last object of every shard, so that a missing or short file is found before a run starts.

    Raises InputError naming the shard.
    """
    samples = dataset.reader.samples
    for row, sample in enumerate(samples):
        inside = 0 < row < len(samples) - 1
        if not (inside and samples[row - 1]["shard"] == sample["shard"] == samples[row + 1]["shard"]):
            dataset.reader.read(row)


class LatentEncoder:
    """Moments of items, encoded where the item does not bring them.

    RGB moments do not depend on which view is the input view, up to order: with `keep` they stay in memory as float16
    after their first use. Normal maps do depend on it and are encoded every time, and so is all of an augmented item.
    """

    def __init__(self, vae: VideoAutoencoder, device: torch.device | str, keep: bool = True):
        self.vae, self.device = vae, device
        self._kept: dict[str, Tensor] | None = {} if keep else None

    def moments(self, item: Item) -> Tensor:
        """[t,v,8,h,w] float32 moments on the device."""
        if item.moments is not None:
            return item.moments.to(self.device).float()
        assert item.frames is not None
        kept = None if item.augmented else self._kept
        rgb = kept.get(item.uid) if kept is not None else None
        if rgb is None:
            rgb = self._encode(item.frames[0])
            if kept is not None:
                # As read back, so that an object's first use and its later ones, or those of a resumed run, are equal.
                rgb = rgb.half()
                kept[item.uid] = rgb.roll(item.input_view, dims=0).cpu()
        else:
            rgb = rgb.roll(-item.input_view, dims=0).to(self.device)
        return torch.stack([rgb.float(), self._encode(item.frames[1])])

    def _encode(self, frames: Tensor) -> Tensor:
        return encode_moments(self.vae, frames.to(self.device))
