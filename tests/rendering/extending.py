"""The render engine of docs/how-to/extending.md, in a copy of the package that has it."""

from pathlib import Path

import pytest
import torch

from nova3d import cameras
from nova3d.images import linear_to_srgb, srgb_to_linear
from nova3d.rendering import engine, render_object
from nova3d.rendering.raster import irradiance

RIG = cameras.orbit(3, size=32)


@pytest.mark.parametrize("name", ["clay", "clay_engine:ClayEngine"])  # registered, and of another package
def test_the_example_of_a_render_engine_runs(
    name: str, tmp_path: Path, lopsided_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clay_engine.py").write_text(Path(engine.__file__).with_name("clay.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    clay = render_object(lopsided_file, RIG, name, supersample=1)
    raster = render_object(lopsided_file, RIG, supersample=1)
    assert torch.equal(clay.normals, raster.normals) and torch.equal(clay.mask, raster.mask)
    covered = clay.mask > 0
    grey = srgb_to_linear(torch.tensor(0.8)) * irradiance(clay.normals[covered], "studio")
    expected = linear_to_srgb(grey.clamp(0, 1))[:, None].expand(-1, 3)
    torch.testing.assert_close(clay.rgb[covered], expected, rtol=0, atol=1e-5)


def test_an_unknown_engine_names_the_registered_ones() -> None:
    with pytest.raises(engine.InputError, match="'wax' is not one of clay, raster, blender, or package"):
        engine.make_engine(engine.EngineConfig("wax"))
