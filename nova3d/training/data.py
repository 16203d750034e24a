"""From objects to the tensors of one micro-step.

The samples of a run are numbered: step s takes the positions s*G ... s*G + G-1 of the global batch of G objects, and
what is drawn for one of them is a function of (seed, step, its place 0 ... G-1 in the global batch) alone. Processes
and micro-steps only share the places out, so any split of G draws the same.
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


@dataclass(frozen=True)
class Draws:
    """What is drawn for a batch, on the CPU: posterior, noise [b,t,v,4,h,w], standard normal; sigma [b]; noise_aug [b];
    picture_noise [b,3,H,W], standard normal; drop_embeds, drop_latents [b] bool."""

    posterior: Tensor
    noise: Tensor
    sigma: Tensor
    noise_aug: Tensor
    picture_noise: Tensor
    drop_embeds: Tensor
    drop_latents: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-step's tensors, on the device.

    x0, noise [b,t,v,4,h,w]; sigma [b], shared by views and tasks (eq. 3); pictures [b,3,H,W] in [-1,1], the input
    views; noise_aug [b], picture_noise [b,3,H,W]; drop_embeds, drop_latents [b] bool; cameras [b,v,2] radians;
    embeds [b,1,d], CLIP's of the pictures, or None: to be computed. condition [b,t,v,4,h,w], unscaled latents of the
    condition `inflated`, or None: the picture's own latent is to be computed.
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


@dataclass(frozen=True)
class Places:
    """The places 0 ... G-1 of the global batch that one process takes in one of its micro-steps."""

    batch_size: int
    processes: int = 1
    micro_steps: int = 1
    rank: int = 0

    @property
    def total(self) -> int:
        """G, the effective batch."""
        return self.batch_size * self.processes * self.micro_steps

    def of(self, micro: int) -> range:
        first = (micro * self.processes + self.rank) * self.batch_size
        return range(first, first + self.batch_size)


def generator(seed: int, step: int, place: int) -> torch.Generator:
    """The CPU generator of one place of one step; independent streams for different (seed, step, place)."""
    state = np.random.SeedSequence([seed, step, place]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def draw(
    config: NoiseConfig,
    schedule: NoiseSchedule,
    seed: int,
    step: int,
    places: Iterable[int],
    latent: tuple[int, ...],
    picture: tuple[int, ...],
) -> Draws:
    """Everything random of the places of a step: latent [t,v,4,h,w] and picture [3,H,W] are the shapes of one object.

    The step sets the noise stage. Noise levels are shared by an object's views and tasks, noise is not.
    """
    rows = []
    for place in places:
        rng = generator(seed, step, place)
        u = torch.rand((), generator=rng)
        alone = config.drop_both + config.drop_clip
        rows.append(
            Draws(
                drop_embeds=u < alone,
                drop_latents=(u < config.drop_both) | ((u >= alone) & (u < alone + config.drop_latent)),
                sigma=schedule.draw(step, 1, rng)[0],
                noise_aug=(config.condition_mean + config.condition_std * torch.randn((), generator=rng)).exp(),
                posterior=torch.randn(latent, generator=rng),
                noise=torch.randn(latent, generator=rng),
                picture_noise=torch.randn(picture, generator=rng),
            )
        )
    return Draws(**{f.name: torch.stack([getattr(row, f.name) for row in rows]) for f in fields(Draws)})


def make_batch(items: list[Item], draws: Draws, encoder: LatentEncoder) -> Batch:
    """The batch of some items on the encoder's device; autoencodes what is not yet latents."""
    device = torch.device(encoder.device)

    def moved(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    moments = torch.stack([encoder.moments(item) for item in items])
    embeds = [item.embeds for item in items if item.embeds is not None]
    conditions = [item.condition for item in items if item.condition is not None]
    return Batch(
        x0=sample_moments(moments, moved(draws.posterior), float(encoder.vae.config.scaling_factor)),
        noise=moved(draws.noise),
        sigma=moved(draws.sigma),
        pictures=moved(torch.stack([item.picture for item in items])),
        noise_aug=moved(draws.noise_aug),
        picture_noise=moved(draws.picture_noise),
        drop_embeds=moved(draws.drop_embeds),
        drop_latents=moved(draws.drop_latents),
        cameras=moved(torch.stack([item.cameras for item in items])),
        uids=tuple(item.uid for item in items),
        embeds=moved(torch.stack(embeds)) if len(embeds) == len(items) else None,
        condition=moved(torch.stack(conditions).float()) if len(conditions) == len(items) else None,
    )


@dataclass(frozen=True)
class Loader:
    """Items and draws of any micro-step of a run, on the CPU: no state, so it starts at any step."""

    reader: ItemReader
    config: NoiseConfig
    schedule: NoiseSchedule
    seed: int
    places: Places
    latent: tuple[int, ...]  # of one object, [t,v,4,h,w]
    picture: tuple[int, ...]  # [3,H,W]

    def __call__(self, address: tuple[int, int]) -> tuple[list[Item], Draws]:
        """address: (step, micro-step)."""
        step, micro = address
        places = self.places.of(micro)
        items = [self.reader[step * self.places.total + place] for place in places]
        return items, draw(self.config, self.schedule, self.seed, step, places, self.latent, self.picture)


class Ahead(Generic[T]):
    """`load(address)` for addresses in their order, up to `depth` of them ahead in `threads` threads.

    Depth 0 loads when asked. A thread takes a whole address, so more than `depth` threads are of no use.

    An error of a thread is raised by the call that would have had its result. Close it, or use it as a context.
    """

    def __init__(
        self, load: Callable[[tuple[int, int]], T], addresses: Iterable[tuple[int, int]], depth: int, threads: int = 1
    ):
        self._load, self._addresses, self._depth = load, iter(addresses), depth
        self._ready: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(threads, "ahead") if depth else None
        self._fill()

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pool is None:
            return self._load(next(self._addresses))
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
            wanted = islice(self._addresses, self._depth - len(self._ready))
            self._ready.extend(self._pool.submit(self._load, address) for address in wanted)
