"""Shipped configs, protocols and models are found by name, in a clone and in an installed package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.utils.resources import Kind, find, locate, names, root

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "kind", "stage", "path"),
    [
        ("cpu", "config", "fusion", "configs/fusion/cpu.yaml"),
        ("fusion/cpu", "config", "", "configs/fusion/cpu.yaml"),
        ("fusion/cpu", "config", "sample", "configs/fusion/cpu.yaml"),
        ("configs/fusion/cpu.yaml", "config", "fusion", "configs/fusion/cpu.yaml"),
        ("nova3d-el0", "protocol", "", "configs/eval/nova3d-el0.yaml"),
        ("nova3d-mini", "model", "", "assets/nova3d-mini"),
        ("assets/nova3d-mini", "model", "", "assets/nova3d-mini"),
        ("assets/objects", "asset", "", "assets/objects"),
        ("assets/images/owl.png", "asset", "", "assets/images/owl.png"),
    ],
)
def test_a_name_and_the_path_of_a_clone_lead_to_the_same_place_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Kind, stage: str, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(name, kind, stage) == ROOT / path


def test_a_path_of_the_users_own_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs" / "fusion"
    own.mkdir(parents=True)
    (own / "cpu.yaml").touch()
    (tmp_path / "cpu").touch()
    assert find("configs/fusion/cpu.yaml", "config", "fusion") == Path("configs/fusion/cpu.yaml")
    assert find(own / "cpu.yaml", "config") == own / "cpu.yaml"
    assert find("./cpu", "config", "fusion") == Path("cpu")
    assert find("cpu", "config", "fusion") == ROOT / "configs/fusion/cpu.yaml"
    assert find(str(own), "model") == own


def test_what_is_nowhere_is_refused_with_the_shipped_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"config 'cpv' is neither a file nor one of cpu, draft, gpu, paper$"):
        find("cpv", "config", "fusion")
    with pytest.raises(InputError, match=r"model 'nova3d-maxi' is neither a folder nor one of nova3d-mini$"):
        find("nova3d-maxi", "model")
    monkeypatch.chdir(ROOT.parent)
    assert locate(f"{ROOT.name}/configs/../README.md", "protocol") is not None  # a file of the working directory
    assert locate("README.md", "asset") is None  # of the shipped ones only what is below configs/ and assets/
    assert locate("somebody/some-model", "model") is None
    assert locate("objects", "asset") is None  # the user's own folder may bear that name
    assert "assets/objects" in names("asset")
    assert "published" not in names("protocol")


def test_an_installed_package_has_them_too(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("nova3d", "configs", "assets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    flags = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, "--target", target, source], check=True)
    asked = [["cpu", "config", "fusion"], ["mini", "protocol", ""], ["nova3d-mini", "model", ""]]
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from nova3d.utils import resources\n"
        "print(json.dumps([str(resources.find(*names)) for names in json.loads(sys.argv[2])]))"
    )
    command = [sys.executable, "-c", program, str(target), json.dumps(asked)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = [Path(path).relative_to(target) for path in json.loads(done.stdout)]
    assert found == [
        Path("nova3d/configs/fusion/cpu.yaml"),
        Path("nova3d/configs/eval/mini.yaml"),
        Path("nova3d/assets/nova3d-mini"),
    ]
    environment = os.environ | {"PYTHONPATH": str(target)}
    command = [sys.executable, "-m", "nova3d", "doctor", "--model", "nova3d-mini"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert f"{target / 'nova3d/assets/nova3d-mini'}: found, checksums fit" in done.stdout
    inside = {path.relative_to(target / "nova3d") for path in (target / "nova3d").rglob("*") if path.is_file()}
    for folder in ("configs", "assets"):
        shipped = {path.relative_to(root()) for path in (root() / folder).rglob("*") if path.is_file()}
        assert shipped <= inside
    code = {path.relative_to(ROOT / "nova3d") for path in (ROOT / "nova3d").rglob("*.py")}
    assert code <= inside
