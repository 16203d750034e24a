"""stats.jsonl: one line per logging interval, means over its steps; cut back to the resumed step on resume."""

import json
from pathlib import Path

from nova3d.errors import InputError


class StatsLog:
    """Collects per-step values and appends their means to a JSON-lines file."""

    def __init__(self, path: Path, start: int):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output folder '{path.parent}' cannot be written: {error.strerror}") from error
        if path.exists():  # lines after the checkpoint would be written twice
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if line["step"] <= start]
            temporary = path.with_suffix(".part")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(path)
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._step = start

    def add(self, step: int, values: dict[str, float]) -> None:
        """Collect the values of one (zero-based) step."""
        self._step = step + 1
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1

    def flush(self) -> dict[str, float]:
        """Write and return the means since the last flush; `step` counts finished steps."""
        means = {key: total / self._counts[key] for key, total in self._sums.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": self._step, **means}) + "\n")
        self._sums, self._counts = {}, {}
        return means
