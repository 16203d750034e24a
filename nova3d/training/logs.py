"""stats.jsonl: one line per logging interval, means over its steps; and the losses by noise level."""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nova3d.errors import InputError
from nova3d.tasks import TASKS

# Noise levels between which losses are told apart: near the data, up to where only the object's place is left.
SIGMA_EDGES = (0.5, 2.0, 8.0, 32.0)


def cut_back(path: Path, start: int) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file up to step `start`; later ones, which a resumed run will write again, and a line
    that was cut short are removed from the file."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if line["step"] <= start]
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.replace(path)
    return kept


class StatsLog:
    """Collects per-step values and appends their means to a JSON-lines file."""

    def __init__(self, path: Path, start: int):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output folder '{path.parent}' cannot be written: {error.strerror}") from error
        cut_back(path, start)
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._step = start

    def add(self, step: int, values: dict[str, float]) -> None:
        """Collect the values of one (zero-based) step."""
        self._step = step + 1
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1

    def flush(self, extra: dict[str, float] | None = None) -> dict[str, float]:
        """Write and return the means since the last flush and `extra`; `step` counts finished steps. Without a step
        since then nothing is written."""
        if not self._counts:
            return {}
        means = {key: total / self._counts[key] for key, total in self._sums.items()} | (extra or {})
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": self._step, **means}) + "\n")
        except OSError as error:
            raise InputError(f"'{self.path}' cannot be written: {error.strerror}") from error
        self._sums, self._counts = {}, {}
        return means


class LossTable:
    """Sums of losses by task and noise level, kept on the device: nothing is read back until it is asked for."""

    def __init__(self, device: torch.device):
        self._table = torch.zeros(2, len(TASKS), len(SIGMA_EDGES) + 1, device=device)  # sums, counts
        self._edges = torch.tensor(SIGMA_EDGES, device=device)

    def add(self, losses: Tensor, sigma: Tensor) -> None:
        """losses [b,t] at noise levels sigma [b]."""
        bins = torch.nn.functional.one_hot(torch.bucketize(sigma, self._edges), len(SIGMA_EDGES) + 1).float()
        good = torch.isfinite(losses)
        self._table[0] += torch.where(good, losses, 0.0).float().T @ bins
        self._table[1] += good.float().T @ bins

    def take(self) -> Tensor:
        """[2,t,bins] sums and counts since the last call, which start anew; sum them over processes."""
        table = self._table.clone()
        self._table.zero_()
        return table

    @staticmethod
    def means(table: Tensor) -> dict[str, float]:
        """`loss_rgb/sigma_2_to_8` and the like, of the levels that occurred."""
        names = ["below_0.5", *(f"{a:g}_to_{b:g}" for a, b in itertools.pairwise(SIGMA_EDGES))]
        names.append(f"above_{SIGMA_EDGES[-1]:g}")
        return {
            f"loss_{task.name.lower()}/sigma_{name}": float(table[0, t, k] / table[1, t, k])
            for t, task in enumerate(TASKS)
            for k, name in enumerate(names)
            if table[1, t, k] > 0
        }
