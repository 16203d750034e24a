import base64
import json
import re

import pytest

from nova3d import images
from tests.helpers.commands import run_script


@pytest.mark.parametrize("suffix", [".glb", ".stl"])
def test_script_writes_everything_and_says_where(f_views, tmp_path, suffix):
    f_views.save(tmp_path / "views")
    out = tmp_path / "new" / f"f{suffix}"
    small = ["optim.steps=10", "hull.resolution=32", "hull.fit_steps=20", "extract.resolution=32", "texture.size=32"]
    small += ["extract.faces=300", "sampling.rays=64", "--device", "cpu"]
    done = run_script("reconstruct", "--views", tmp_path / "views", "--out", out, *small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    assert "component" in done.stdout
    folder = tmp_path / "new" / "f_fusion"
    assert len(list((folder / "conflict").iterdir())) == 8
    assert len(json.loads((folder / "transforms.json").read_text())["frames"]) == 8
    assert f"report: {folder / 'report.html'}" in done.stdout.splitlines()
    glb = out if suffix == ".glb" else folder / "f.glb"
    shown = re.search(r'id="glb">([^<]*)<', (folder / "report.html").read_text())
    assert shown is not None and base64.b64decode(shown[1]) == glb.read_bytes()
    assert images.read_image(folder / "preview.png").shape == (512, 512, 4)
    assert [path.stat().st_size > 1000 for path in folder.glob("turntable.*")] == [True]
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["optim"]["steps"] == 10
    assert record["report"]["components"] == 1


@pytest.mark.parametrize(
    ("views", "out", "word"),
    [("missing", "x.glb", "does not exist"), ("views", "x.step", "must end"), ("views", "file/x.glb", "cannot write")],
)
def test_script_refuses_bad_input_in_one_line(f_views, tmp_path, views, out, word):
    f_views.save(tmp_path / "views")
    (tmp_path / "file").write_text("")
    done = run_script("reconstruct", "--views", tmp_path / views, "--out", tmp_path / out)
    assert done.returncode == 2
    assert word in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in done.stderr
