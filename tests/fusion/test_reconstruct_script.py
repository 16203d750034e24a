import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts/reconstruct.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def test_script_writes_everything_and_says_where(f_views, tmp_path):
    f_views.save(tmp_path / "views")
    out = tmp_path / "new" / "f.glb"
    small = ["optim.steps=10", "hull.resolution=32", "hull.fit_steps=20", "extract.resolution=32", "texture.size=32"]
    small += ["extract.faces=300", "sampling.rays=64", "--device", "cpu"]
    done = run_script("--views", str(tmp_path / "views"), "--out", str(out), *small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    assert "component" in done.stdout
    folder = tmp_path / "new" / "f_fusion"
    assert len(list((folder / "conflict").iterdir())) == 8
    assert len(json.loads((folder / "transforms.json").read_text())["frames"]) == 8
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["optim"]["steps"] == 10
    assert record["report"]["components"] == 1


@pytest.mark.parametrize(
    ("views", "out", "word"),
    [("missing", "x.glb", "does not exist"), ("views", "x.stl", "must end"), ("views", "file/x.glb", "cannot write")],
)
def test_script_refuses_bad_input_in_one_line(f_views, tmp_path, views, out, word):
    f_views.save(tmp_path / "views")
    (tmp_path / "file").write_text("")
    done = run_script("--views", str(tmp_path / views), "--out", str(tmp_path / out))
    assert done.returncode == 2
    assert word in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in done.stderr
