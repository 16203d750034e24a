"""The tensors of one micro-step: which objects, what is drawn for them, and reading ahead.

The samples of a run are numbered: step s takes the positions s*G ... s*G + G-1, for a global batch of G objects. What
is drawn for one of them depends on (seed, step, its index 0 ... G-1 in the global batch) alone. Processes and
micro-steps share the indices out, so any split of G draws the same.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from nova3d.diffusion import NoiseSchedule
from nova3d.models.autoencoder import sample_moments
from nova3d.training.config import NoiseConfig
from nova3d.training.latents import Item, ItemReader, LatentEncoder

T = TypeVar("T")
MicroStep = tuple[int, int]  # (step, micro-step of that step)


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
    """Assemble a batch on the encoder's device; what is not latents yet is encoded.

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

    def __call__(self, at: MicroStep) -> tuple[list[Item], Draws]:
        step, micro_step = at
        indices = self.global_batch.indices(micro_step)
        items = [self.reader[step * self.global_batch.size + index] for index in indices]
        shapes = (self.latent_shape, self.picture_shape)
        return items, draw(self.noise, self.noise_schedule, self.seed, step, indices, *shapes)


class Prefetcher(Generic[T]):
    """Loads micro-batches ahead in threads and hands them out in order.

    An error of a thread is raised by the `next` that would have returned its result. Close it, or use it as a context.

    Args:
        load: called with each micro-step, in threads.
        micro_steps: what to load, in order.
        depth: micro-batches read ahead; 0 loads when asked, without threads.
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
        """End the threads; what they had read ahead is dropped."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        if self._pool:
            wanted = islice(self._waiting, self._depth - len(self._ready))
            self._ready.extend(self._pool.submit(self._load, micro_step) for micro_step in wanted)
