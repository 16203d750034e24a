"""What the tests share. Nothing here needs a GPU or a network."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from nova3d import cameras
from nova3d.rendering import turntable
from nova3d.views import ViewSet
from tests.helpers import meshes

# The same examples on every machine, and no time limit that a busy machine could break.
settings.register_profile("nova3d", deadline=None, derandomize=True)
settings.load_profile("nova3d")

# For the workers of pytest-xdist and every other process that is started here; only glibc reads them. It would give
# the memory of each large tensor back at once, and a seventh of a test that runs a network is then spent on new pages.
for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
    os.environ.setdefault(name, str(2**30))

# They have tests of 5 seconds and more. One of them begun last would keep one process busy and the others idle.
LONG = (
    "training/test_sharded.py",
    "test_tutorials.py",
    "data/jobs/test_worker.py",
    "training/test_trainer.py",
    "training/test_learning.py",
    "pipeline/test_options.py",
    "utils/test_resources.py",
    "utils/test_compat.py",
    "test_extending.py",
    "experiments/test_attention.py",
    "models/test_svd_original.py",
    "report/test_browser.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files of LONG first."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).as_posix() not in LONG)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through all that the imports have made, which is never freed."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _accelerate_forgets() -> Iterator[None]:
    """A run in this process leaves its precision in accelerate's state, which refuses that of the next run."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state()


@pytest.fixture
def short_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turntables of four pictures: a film of a whole turn takes as long as a short fit."""
    whole = turntable.write_turntable
    monkeypatch.setattr(
        turntable, "write_turntable", lambda mesh, folder, frames, size: whole(mesh, folder, min(frames, 4), size)
    )


@pytest.fixture
def coarse_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Baselines and figures of shapes from small pictures, for tests that ask what is scored and not how well."""
    from tests.helpers.coarse import coarsen

    coarsen(monkeypatch)


# Cells (column, row) of a 3x5 letter F, row 0 on top: no mirror image or rotation of it is itself.
LETTER_F = [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 2), (0, 3), (0, 4)]


@pytest.fixture
def letter_f() -> list[tuple[int, int]]:
    """(column, row) of the eight filled cells of a 3x5 letter F, row 0 on top."""
    return list(LETTER_F)


@pytest.fixture
def make_views() -> Callable[..., ViewSet]:
    """A factory of random but valid views: random colours and unit normals inside a disc, 4 views of 24 pixels."""

    def make(num_views: int = 4, size: int = 24, seed: int = 0) -> ViewSet:
        generator = torch.Generator().manual_seed(seed)
        rig = cameras.orbit(num_views, size=size)
        inside = (rig.pixel_centres() - size / 2).norm(dim=-1) < 0.4 * size
        mask = inside.float().expand(num_views, size, size).clone()
        rgb = torch.rand(num_views, size, size, 3, generator=generator)
        raw = torch.randn(num_views, size, size, 3, generator=generator)
        normals = torch.nn.functional.normalize(raw, dim=-1) * mask[..., None]
        return ViewSet(torch.where(mask[..., None] > 0, rgb, 1.0), normals, mask, rig)

    return make


@pytest.fixture
def angle_deg() -> Callable[[Tensor, Tensor], Tensor]:
    """Angle in degrees between unit vectors [...,3]; accurate for small angles, unlike the arc cosine."""

    def angle(a: Tensor, b: Tensor) -> Tensor:
        return torch.rad2deg(2 * torch.asin(((a - b).norm(dim=-1) / 2).clamp(max=1)))

    return angle


@pytest.fixture(scope="session")
def sphere_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finely divided sphere of radius 0.5 as GLB, with exact vertex normals."""
    return meshes.write_sphere(tmp_path_factory.mktemp("meshes") / "sphere.glb")


@pytest.fixture(scope="session")
def lopsided_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three coloured boxes without any symmetry, about the origin, as PLY."""
    return meshes.write_lopsided(tmp_path_factory.mktemp("meshes") / "lopsided.ply")
