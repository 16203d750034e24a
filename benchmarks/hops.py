#!/usr/bin/env python
"""The files of nova3d that a call crosses, the calls between them, and circles among the package's imports."""

import ast
import inspect
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import nova3d
from nova3d.cli import common

PACKAGE = Path(nova3d.__file__).resolve().parent
ROOT = PACKAGE.parent
Edges = Counter[tuple[str, str]]


def main() -> None:
    arguments = common.parser(
        "Counts the files of nova3d whose functions a call runs, and the distinct pairs (calling file, called file).\n"
        "Frames of other packages are skipped: a network run by torch is called by whoever called torch.\n"
        "Imports, other threads and the benchmark's own command line are not counted.\n"
        "PYTHONPATH names another checkout to measure.",
        "python benchmarks/hops.py sample train-step fusion-step circles --list",
    )
    arguments.add_argument("what", nargs="*", choices=[*MEASURES, "circles", []], help="default: all of them")
    arguments.add_argument("--list", action="store_true", help="name the files and the pairs")
    options = arguments.parse_args()
    for name in options.what or [*MEASURES, "circles"]:
        if name == "circles":
            circles = import_circles()
            print(f"circles: {len(circles)}")
            for circle in circles:
                print(f"  {', '.join(circle)}")
            continue
        hops = Hops()
        MEASURES[name](hops)
        rooms = Counter(file.partition("/")[0].removesuffix(".py") for file in hops.files)
        shares = ", ".join(f"{room} {count}" for room, count in rooms.most_common())
        print(f"{name}: {len(hops.files)} files, {len(hops.edges)} edges ({shares})")
        if options.list:
            print("".join(f"  {file}\n" for file in sorted(hops.files)), end="")
            print("".join(f"  {a} -> {b}  x{count}\n" for (a, b), count in sorted(hops.edges.items())), end="")


class Hops:
    """Records, while it is started, the files that run and the calls from one file to another."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.edges: Edges = Counter()
        self._names: dict[str, str | None] = {}

    def start(self) -> None:
        sys.setprofile(self._event)

    def stop(self) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        called = self._file(frame) if event == "call" else None
        if called is None:
            return
        caller, above = None, frame.f_back
        while above is not None and caller is None and above.f_code.co_filename != __file__:
            caller, above = self._file(above), above.f_back
        self.files.add(called)
        if caller not in (None, called):
            self.edges[caller, called] += 1

    def _file(self, frame: FrameType) -> str | None:
        """The file inside the package; None for other files and for bodies of modules and classes, run on import."""
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return None
        path = frame.f_code.co_filename
        if path not in self._names:
            inside = Path(path).is_relative_to(PACKAGE)
            self._names[path] = Path(path).relative_to(PACKAGE).as_posix() if inside else None
        return self._names[path]


def between_calls(hops: Hops, first: int) -> Callable[..., Any]:
    """A callback that starts the recording when it is called for the `first` time and stops it at the next call.

    Returns False, which as a `stop` callback means: go on.
    """
    calls = 0

    def callback(*arguments: Any) -> bool:
        nonlocal calls
        hops.stop()
        calls += 1
        if calls == first:
            hops.start()
        return False

    return callback


def sample(hops: Hops) -> None:
    """One picture to 16 views on disk, with the bundled model."""
    import nova3d.pipeline.pipeline  # noqa: F401  before the recording: functions that run on import are not counted
    from nova3d.sampling import SampleConfig, sample_views

    with tempfile.TemporaryDirectory() as out:
        config = SampleConfig(
            image=str(ROOT / "assets/images/horse.png"), model=str(ROOT / "assets/nova3d-mini"), out=out
        )
        hops.start()
        try:
            sample_views(config, "cpu")
        finally:
            hops.stop()


def train_step(hops: Hops) -> None:
    """One step of the bundled model's UNet on the sample shards, from the middle of one step to that of the next."""
    from nova3d import config as configs
    from nova3d.training.config import TrainConfig
    from nova3d.training.trainer import train

    model = ROOT / "assets/nova3d-mini"
    with tempfile.TemporaryDirectory() as out:
        overrides = [
            f"out={out}",
            f"data.shards={ROOT / 'assets/train-sample'}",
            f"vae={model / 'vae'}",
            "image_encoder=none",
            "steps=5",
            "log_every=1",
            "checkpoint_every=5",
            "validate_every=0",
        ]
        config = configs.load(TrainConfig, ROOT / "configs/train/mini.yaml", overrides)
        try:
            train(config, "cpu", stop=between_calls(hops, 2))
        finally:
            hops.stop()


def fusion_step(hops: Hops) -> None:
    """Ten steps of a small fit, between two of its progress messages and two refreshes of its occupancy."""
    from nova3d import config as configs
    from nova3d.cameras import orbit
    from nova3d.data import render_object
    from nova3d.fusion import FusionConfig
    from nova3d.fusion.optimize import fit

    mesh = sorted((ROOT / "assets/objects").glob("*.glb"))[0]
    views = render_object(mesh, orbit(8, size=64), supersample=2, light="flat")
    overrides = ["optim.steps=60", "hull.resolution=48", "hull.fit_steps=40", "hull.refresh=60"]
    config = configs.load(FusionConfig, None, overrides)
    try:
        fit(views, config, between_calls(hops, 3))
    finally:
        hops.stop()


MEASURES: dict[str, Callable[[Hops], None]] = {"sample": sample, "train-step": train_step, "fusion-step": fusion_step}


def import_circles() -> list[list[str]]:
    """Groups of modules that import one another, in functions too; imports for type checkers do not count."""
    graph = {name: set(imported(name, path)) for name, path in modules().items()}
    reach: dict[str, set[str]] = {}
    for name in graph:
        found, waiting = set[str](), list(graph[name])
        while waiting:
            if (following := waiting.pop()) not in found:
                found.add(following)
                waiting += graph[following]
        reach[name] = found
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path) -> Iterator[str]:
    """The package's modules that a module imports, without the packages that hold them."""
    known = modules()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if (target := inner if inner in known else node.module) in known and target != name:
                    yield str(target)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _statements(child)


if __name__ == "__main__":
    common.run(main)
