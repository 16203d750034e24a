"""Work cut into pieces that fit into the device's memory, and cut further when they do not."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch

from nova3d.errors import InputError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

SMALLEST_STRIP = 8  # rows; below that a strip is mostly the rows it carries for its neighbours


@dataclass(frozen=True)
class Memory:
    """Sizes of the pieces of work. They change memory and time, and the result by no more than rounding.

    The decoder's temporal layers see all views of a video whatever the sizes are, and its normalisations all of their
    pixels (nova3d.models.streaming).

    Attributes:
        batch: pictures that are encoded and denoised together, None for all. The views of an inflated outline are
            pictures too; None encodes those of one object and task together.
        sequential_guidance: the two passes of guidance run one after the other instead of as one batch.
        decode_views: views that the autoencoder decodes together, None for all.
        decode_rows: rows of them that it decodes together, None for whole pictures.

    Raises:
        InputError: for a negative size.
    """

    batch: int | None = None
    sequential_guidance: bool = False
    decode_views: int | None = None
    decode_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "decode_views", "decode_rows"):
            size = getattr(self, name)
            if size is not None and size < 0:
                raise InputError(f"{name} must be 0 or more, or None for all, got {size}")
            object.__setattr__(self, name, size or None)  # 0 meant all in earlier versions

    def __str__(self) -> str:
        return ", ".join(f"{field.name}={value}" for field in fields(self) if (value := getattr(self, field.name)))

    def less_for_encoding(self, pictures: int) -> "Memory | None":
        """One picture at a time; None where it is so already."""
        return replace(self, batch=1) if min(self.batch or pictures, pictures) > 1 else None

    def less_for_denoising(self, pictures: int, guided: bool) -> "Memory | None":
        """Sequential guidance (where there is guidance), then one picture at a time; None where nothing is left."""
        if guided and not self.sequential_guidance:
            return replace(self, sequential_guidance=True)
        return self.less_for_encoding(pictures)

    def less_for_decoding(self, views: int, height: int) -> "Memory | None":
        """Half the views, down to one, then half the rows; None where nothing is left to cut."""
        together = min(self.decode_views or views, views)
        if together > 1:
            return replace(self, decode_views=together // 2)
        rows = min(self.decode_rows or height, height) // 2
        return replace(self, decode_views=1, decode_rows=rows) if rows >= SMALLEST_STRIP else None


# For a machine that has little: the smallest pieces that do not yet cost much time.
LOW_MEMORY = Memory(batch=1, sequential_guidance=True, decode_views=1, decode_rows=64)


def fit_in_memory(
    stage: str, memory: Memory, run: Callable[[Memory], Result], less: Callable[[Memory], Memory | None]
) -> tuple[Result, Memory]:
    """Run a stage, again with smaller pieces for as long as the device runs out of memory.

    Settings other than the given ones are logged once.

    Args:
        stage: its name for messages: "decoding".
        memory: the sizes of the first try.
        run: does the work.
        less: gives the next smaller sizes; None where nothing is left to cut.

    Returns:
        The result, and the settings that it was made with.

    Raises:
        InputError: where the smallest pieces do not fit.
    """
    chosen = memory
    while True:
        try:
            result = run(chosen)
            break
        except torch.OutOfMemoryError as error:
            problem = str(error).splitlines()[0] if str(error) else "out of memory"
        # Out of the except block: the error's traceback holds the tensors of the call that failed.
        following = less(chosen)
        if following is None:
            raise InputError(
                f"{stage} does not fit into the device's memory even with {chosen} ({problem}): load the model with "
                "dtype=float16 or bfloat16, use enable_model_cpu_offload() (low_memory=true in the configs), or "
                "another device"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        chosen = following
    if chosen != memory:
        log.warning("%s ran out of memory; it went on, with the same result, with %s", stage, chosen)
    return result, chosen
