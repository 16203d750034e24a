"""The data of a step: objects read from shards or a latent cache, what is drawn for them, and their batches.

The samples of a run are numbered: step s takes the positions s*G ... s*G + G-1, for a global batch of G objects. What
is drawn for one of them depends on (seed, step, its index 0 ... G-1 in the global batch) alone. Processes and
micro-steps share the indices out, so any split of G draws the same.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from nova3d.data.augment import UNCHANGED, Augmentation
from nova3d.data.augment import draw as draw_augmentation
from nova3d.data.config import AugmentConfig
from nova3d.data.multiview import MultiViewDataset
from nova3d.diffusion import NoiseSchedule
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder, encode_moments, sample_moments
from nova3d.training.config import NoiseConfig

log = logging.getLogger(__name__)
T = TypeVar("T")
MicroStep = tuple[int, int]  # (step, micro-step of that step)
ATTEMPTS = 16  # objects tried for one position


@dataclass(frozen=True)
class GlobalBatch:
    """The global batch of G objects, split over processes and micro-steps.

    Attributes:
        batch_size: objects of one process in one micro-step.
        processes: number of processes.
        micro_steps: micro-steps per step.
        rank: this process.
    """

    batch_size: int
    processes: int = 1
    micro_steps: int = 1
    rank: int = 0

    @property
    def size(self) -> int:
        """G, the effective batch."""
        return self.batch_size * self.processes * self.micro_steps

    def indices(self, micro_step: int) -> range:
        """The indices, in 0 ... G-1, of this process in one of its micro-steps."""
        first = (micro_step * self.processes + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def schedule(self, first_step: int, last_step: int) -> Iterator[MicroStep]:
        """Every micro-step from `first_step` up to, not including, `last_step`."""
        return ((step, micro) for step in range(first_step, last_step) for micro in range(self.micro_steps))


@dataclass(frozen=True)
class Item:
    """One object seen from one input view, on the CPU. It has either frames or moments.

    Attributes:
        uid: the object's name.
        input_view: the rendered view that is view 0 here.
        picture: float32 [3,H,W] in [-1,1], the input view on white.
        cameras: float32 [v,2], azimuth relative to the input view and elevation, radians.
        frames: float32 [t,v,3,H,W] in [-1,1].
        moments: float16 [t,v,8,h,w] of the autoencoder's posterior.
        embeds: float32 [1,d], the picture's CLIP embedding, where a cache holds it.
        condition: float16 [t,v,4,h,w], unscaled latents of the condition `inflated`, where a cache holds them.
        augmented: the object is not as it was rendered.
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


class ItemSource(Protocol):
    """Where items come from."""

    dataset: MultiViewDataset

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Read one object.

        Args:
            row: index of the object in the dataset.
            input_view: the rendered view that becomes view 0.
            change: an augmentation.

        Returns:
            The object.

        Raises:
            InputError: where it cannot be read or changed.
        """
        ...


class ShardSource:
    """Items with frames, from shards."""

    def __init__(self, dataset: MultiViewDataset):
        self.dataset = dataset

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Read one object, as `ItemSource.load`."""
        views = self.dataset.views(row, input_view, change)
        frames = torch.stack([views.rgb * 2 - 1, views.normals]).permute(0, 1, 4, 2, 3)
        cameras = views.cameras.azimuth_elevation()
        uid, augmented = self.dataset.reader.samples[row]["uid"], change != UNCHANGED
        return Item(uid, input_view, frames[0, 0], cameras, frames=frames, augmented=augmented)


class ItemReader:
    """The samples of a run by position, each augmented as drawn for its position.

    Args:
        source: reads the objects.
        on_corrupt: "fail" raises InputError for an object that cannot be read. "skip" takes the next readable one, the
            same on any machine; the log names every lost object once, and `skipped` counts the replacements.
        augment: random changes of the objects; default none.
    """

    def __init__(
        self,
        source: ItemSource,
        on_corrupt: str = "fail",
        augment: AugmentConfig | None = None,
    ):
        self.source, self.on_corrupt = source, on_corrupt
        self.augment = augment or AugmentConfig()
        self.skipped = 0
        self._named: set[int] = set()

    def __getitem__(self, position: int) -> Item:
        """The position-th sample of the run; see MultiViewDataset.address."""
        dataset = self.source.dataset
        row, view = dataset.address(position)
        change = draw_augmentation(self.augment, dataset.seed, position)
        for attempt in range(ATTEMPTS):
            other = (row + attempt) % len(dataset)
            its_views = dataset.views_of(other)
            seen_from = view if view in its_views else its_views[position % len(its_views)]
            try:
                return self.source.load(other, seen_from, change)
            except InputError as error:
                if self.on_corrupt == "fail":
                    raise
                self.skipped += 1
                if other not in self._named:
                    self._named.add(other)
                    log.warning("object '%s' is left out: %s", dataset.reader.samples[other]["uid"], error)
        raise InputError(f"{ATTEMPTS} objects in a row cannot be read, the last is row {other}; mend the shards")


def check_shards(dataset: MultiViewDataset) -> None:
    """Read the first and the last object of every shard, so that a missing or short file is found before a run starts.

    Args:
        dataset: of the run.

    Raises:
        InputError: naming the shard.
    """
    samples = dataset.reader.samples
    for row, sample in enumerate(samples):
        inside = 0 < row < len(samples) - 1
        if not (inside and samples[row - 1]["shard"] == sample["shard"] == samples[row + 1]["shard"]):
            dataset.reader.read(row)


class LatentEncoder:
    """Makes the latents of items that have none.

    RGB moments depend on the input view only by their order, so `keep` can hold them. Normal maps are relative to the
    input view and are encoded every time, and so is everything of an augmented item.

    Args:
        vae: the autoencoder, on `device`.
        device: of the latents.
        keep: keep RGB moments in memory as float16 after their first use.
    """

    def __init__(self, vae: VideoAutoencoder, device: torch.device | str, keep: bool = True):
        self.vae, self.device = vae, device
        self._kept: dict[str, Tensor] | None = {} if keep else None

    def moments(self, item: Item) -> Tensor:
        """The moments of an item's posterior, float32 [t,v,8,h,w] on the device."""
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


@dataclass(frozen=True)
class Draws:
    """The random numbers of b objects, on the CPU.

    Attributes:
        posterior: float32 [b,t,v,4,h,w], standard normal, for the sample of the autoencoder's posterior.
        noise: float32 [b,t,v,4,h,w], standard normal.
        sigma: float32 [b], noise levels.
        noise_aug: float32 [b], deviation of the condition's pixel noise.
        picture_noise: float32 [b,3,H,W], standard normal.
        drop_embeds: bool [b], whose image embedding is dropped.
        drop_latents: bool [b], whose condition latent is dropped.
    """

    posterior: Tensor
    noise: Tensor
    sigma: Tensor
    noise_aug: Tensor
    picture_noise: Tensor
    drop_embeds: Tensor
    drop_latents: Tensor


@dataclass(frozen=True)
class Batch:
    """The tensors of b objects for one micro-step, on the run's device.

    Attributes:
        x0: float32 [b,t,v,4,h,w], scaled latents.
        noise: float32 [b,t,v,4,h,w], standard normal.
        sigma: float32 [b], noise levels, shared by an object's views and tasks (eq. 3).
        pictures: float32 [b,3,H,W] in [-1,1], the input views.
        noise_aug: float32 [b], deviation of the condition's pixel noise.
        picture_noise: float32 [b,3,H,W], standard normal.
        drop_embeds: bool [b], whose image embedding is dropped.
        drop_latents: bool [b], whose condition latent is dropped.
        cameras: float32 [b,v,2], azimuth relative to the input view and elevation, radians.
        uids: the objects' names.
        embeds: float32 [b,1,d], the pictures' CLIP embeddings; None where they are to be computed.
        condition: float32 [b,t,v,4,h,w], unscaled latents of the condition `inflated`; None where the condition is the
            picture.
    """

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    pictures: Tensor
    noise_aug: Tensor
    picture_noise: Tensor
    drop_embeds: Tensor
    drop_latents: Tensor
    cameras: Tensor
    uids: tuple[str, ...]
    embeds: Tensor | None = None
    condition: Tensor | None = None


def generator(seed: int, step: int, index: int) -> torch.Generator:
    """The CPU generator of one index of one step; independent streams for different (seed, step, index)."""
    state = np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def draw(
    config: NoiseConfig,
    schedule: NoiseSchedule,
    seed: int,
    step: int,
    indices: Iterable[int],
    latent_shape: tuple[int, ...],
    picture_shape: tuple[int, ...],
) -> Draws:
    """Draw the random numbers of some objects of a step.

    Noise levels are shared by an object's views and tasks, noise is not.

    Args:
        config: condition noise and dropouts.
        schedule: of the noise levels; `step` sets its stage.
        seed: of the run.
        step: the step.
        indices: of b objects in the global batch.
        latent_shape: (t, v, 4, h, w) of one object.
        picture_shape: (3, H, W).

    Returns:
        The draws of b objects.
    """
    rows = []
    for index in indices:
        rng = generator(seed, step, index)
        u = torch.rand((), generator=rng)
        p_embeds = config.drop_both + config.drop_clip  # probability of dropped embeddings
        rows.append(
            Draws(
                drop_embeds=u < p_embeds,
                drop_latents=(u < config.drop_both) | ((u >= p_embeds) & (u < p_embeds + config.drop_latent)),
                sigma=schedule.draw(step, 1, rng)[0],
                noise_aug=(config.condition_mean + config.condition_std * torch.randn((), generator=rng)).exp(),
                posterior=torch.randn(latent_shape, generator=rng),
                noise=torch.randn(latent_shape, generator=rng),
                picture_noise=torch.randn(picture_shape, generator=rng),
            )
        )
    return Draws(**{f.name: torch.stack([getattr(row, f.name) for row in rows]) for f in fields(Draws)})


def make_batch(items: list[Item], draws: Draws, encoder: LatentEncoder) -> Batch:
    """Assemble a batch on the encoder's device; items without latents are encoded.

    Args:
        items: b objects.
        draws: of the same b objects.
        encoder: makes the latents.

    Returns:
        The batch.
    """
    device = torch.device(encoder.device)

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    moments = torch.stack([encoder.moments(item) for item in items])
    embeds = [item.embeds for item in items if item.embeds is not None]
    conditions = [item.condition for item in items if item.condition is not None]
    return Batch(
        x0=sample_moments(moments, move(draws.posterior), float(encoder.vae.config.scaling_factor)),
        noise=move(draws.noise),
        sigma=move(draws.sigma),
        pictures=move(torch.stack([item.picture for item in items])),
        noise_aug=move(draws.noise_aug),
        picture_noise=move(draws.picture_noise),
        drop_embeds=move(draws.drop_embeds),
        drop_latents=move(draws.drop_latents),
        cameras=move(torch.stack([item.cameras for item in items])),
        uids=tuple(item.uid for item in items),
        embeds=move(torch.stack(embeds)) if len(embeds) == len(items) else None,
        condition=move(torch.stack(conditions).float()) if len(conditions) == len(items) else None,
    )


@dataclass(frozen=True)
class MicroBatchLoader:
    """Reads the items and draws the random numbers of any micro-step, on the CPU. It has no state to resume.

    Attributes:
        reader: the run's samples.
        noise: condition noise and dropouts.
        noise_schedule: of the noise levels.
        seed: of the run.
        global_batch: which objects this process takes.
        latent_shape: (t, v, 4, h, w) of one object.
        picture_shape: (3, H, W).
    """

    reader: ItemReader
    noise: NoiseConfig
    noise_schedule: NoiseSchedule
    seed: int
    global_batch: GlobalBatch
    latent_shape: tuple[int, ...]
    picture_shape: tuple[int, ...]

    def __call__(self, micro_step: MicroStep) -> tuple[list[Item], Draws]:
        step, number = micro_step
        indices = self.global_batch.indices(number)
        items = [self.reader[step * self.global_batch.size + index] for index in indices]
        shapes = (self.latent_shape, self.picture_shape)
        return items, draw(self.noise, self.noise_schedule, self.seed, step, indices, *shapes)


class Prefetcher(Generic[T]):
    """Loads micro-batches ahead in threads and hands them out in order.

    An error of a thread is raised by the `next` that would have returned its result. Close it, or use it as a context.

    Args:
        load: called with each micro-step, in threads.
        micro_steps: what to load, in order.
        depth: micro-batches read ahead; 0 loads each when it is needed, without threads.
        threads: each loads one micro-batch at a time, so more than `depth` are of no use.
    """

    def __init__(self, load: Callable[[MicroStep], T], micro_steps: Iterable[MicroStep], depth: int, threads: int = 1):
        self._load, self._waiting, self._depth = load, iter(micro_steps), depth
        self._ready: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(threads, "prefetch") if depth else None
        self._fill()

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pool is None:
            return self._load(next(self._waiting))
        if not self._ready:
            raise StopIteration
        result = self._ready.popleft().result()
        self._fill()
        return result

    def close(self) -> None:
        """End the threads and drop the micro-batches that were read ahead."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        if self._pool:
            wanted = islice(self._waiting, self._depth - len(self._ready))
            self._ready.extend(self._pool.submit(self._load, micro_step) for micro_step in wanted)
