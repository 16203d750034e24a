import base64
import html
import json
import re

import numpy as np
import pytest
import torch

from nova3d import images
from nova3d.evaluation import read_surface
from nova3d.layouts import Placement
from tests.helpers.commands import call_script

pytestmark = pytest.mark.usefixtures("short_films")
SMALL = ["optim.steps=10", "hull.resolution=32", "hull.fit_steps=20", "extract.resolution=32", "texture.size=32"]
SMALL += ["extract.faces=300", "sampling.rays=64", "conflict.polish_steps=20", "--device", "cpu"]


@pytest.mark.parametrize("suffix", [".glb", ".stl"])
def test_script_writes_everything_and_says_where(f_views, tmp_path, monkeypatch, capsys, suffix):
    f_views.save(tmp_path / "views")
    out = tmp_path / "new" / f"f{suffix}"
    assert call_script(monkeypatch, "reconstruct", "--views", tmp_path / "views", "--out", out, *SMALL) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(out)
    assert "component" in printed
    folder = tmp_path / "new" / "f_fusion"
    assert len(list((folder / "conflict").iterdir())) == 8
    assert len(json.loads((folder / "transforms.json").read_text())["frames"]) == 8
    assert f"report: {folder / 'report.html'}" in printed.splitlines()
    glb = out if suffix == ".glb" else folder / "f.glb"
    shown = re.search(r'id="glb">([^<]*)<', (folder / "report.html").read_text())
    assert shown is not None and base64.b64decode(shown[1]) == glb.read_bytes()
    assert images.read_image(folder / "preview.png").shape == (512, 512, 4)
    assert [path.stat().st_size > 1000 for path in folder.glob("turntable.*")] == [True]
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["optim"]["steps"] == 10
    assert record["report"]["components"] == 1


def test_the_mesh_can_be_in_the_frame_of_the_views(f_views, tmp_path, monkeypatch):
    """A world with +Z up, ten times as large and far from the origin, comes back as it was."""
    shift, to_theirs = np.array([50.0, -20.0, 3.0]), np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    cameras, frames = f_views.cameras, []
    (tmp_path / "views").mkdir()
    for i in range(len(f_views)):
        images.save_image(tmp_path / f"views/{i}.png", f_views.straight_alpha(i))
        c2w = cameras.c2w[i].double().numpy()
        theirs = np.eye(4)
        theirs[:3, :3], theirs[:3, 3] = to_theirs @ c2w[:3, :3], 10 * to_theirs @ c2w[:3, 3] + shift
        frames.append({"file_path": f"{i}.png", "transform_matrix": theirs.tolist()})
    size, focal = cameras.width, float(cameras.intrinsics[0, 0]) / 10
    lens = {"w": size, "h": size, "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2}
    transforms = {"camera_model": "ORTHOPHOTO", **lens, "frames": frames}
    (tmp_path / "views/transforms.json").write_text(json.dumps(transforms))
    out = tmp_path / "f.glb"
    given = ["--views", tmp_path / "views", "--out", out, "--frame", "source", *SMALL]
    assert call_script(monkeypatch, "reconstruct", *given) == 0
    mesh, ours = read_surface(out), read_surface(tmp_path / "f_fusion/f.glb")
    placement = Placement(
        torch.tensor(json.loads((tmp_path / "f_fusion/record.json").read_text())["placement"]).double()
    )
    there = placement.apply(torch.from_numpy(np.asarray(mesh.vertices)).double()).numpy()
    assert np.abs(there - ours.vertices).max() < 1e-4
    assert np.abs(np.linalg.inv(to_theirs) @ ((mesh.bounds.mean(axis=0) - shift) / 10)).max() < 0.1
    assert 0.8 < np.ptp(mesh.bounds, axis=0).max() / 10 < 1.2
    assert "in the frame of the views' files" in html.unescape((tmp_path / "f_fusion/report.html").read_text())


@pytest.mark.parametrize(
    ("views", "out", "word"),
    [("missing", "x.glb", "does not exist"), ("views", "x.step", "must end"), ("views", "file/x.glb", "cannot write")],
)
def test_script_refuses_bad_input_in_one_line(f_views, tmp_path, monkeypatch, capsys, views, out, word):
    f_views.save(tmp_path / "views")
    (tmp_path / "file").write_text("")
    assert call_script(monkeypatch, "reconstruct", "--views", tmp_path / views, "--out", tmp_path / out) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert word in line
