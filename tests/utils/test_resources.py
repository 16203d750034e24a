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
        ("48gb", "config", "preset", "configs/train/48gb.yaml"),
        ("configs/train/48gb.yaml", "config", "preset", "configs/train/48gb.yaml"),
        ("mini-autoencoder", "config", "train-autoencoder", "configs/train/mini-autoencoder.yaml"),
        ("nova3d-el0", "protocol", "", "configs/eval/nova3d-el0.yaml"),
        ("cpu", "config", "", "configs/fusion/cpu.yaml"),
        ("nova3d-mini", "model", "", "assets/nova3d-mini"),
        ("mini", "model", "", "assets/nova3d-mini"),
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
    with pytest.raises(InputError, match=r"config '48gb' is neither a file nor one of mini, mini-cpu, paper$"):
        find("48gb", "config", "train")
    with pytest.raises(InputError, match=r"config 'mini' is neither a file nor one of 24gb, 48gb, mini-gpu$"):
        find("mini", "config", "preset")
    with pytest.raises(InputError, match="config 'mini' is neither a file nor one of ablation/attention, "):
        find("mini", "config")  # several stages have one
    with pytest.raises(InputError, match=r"model 'nova3d-maxi' is neither a folder nor one of nova3d-mini$"):
        find("nova3d-maxi", "model")
    monkeypatch.chdir(ROOT.parent)
    assert locate(f"{ROOT.name}/configs/../README.md", "protocol") is not None  # a file of the working directory
    assert locate("README.md", "asset") is None  # of the shipped ones only what is below configs/ and assets/
    assert locate("somebody/some-model", "model") is None
    assert locate("objects", "asset") is None  # the user's own folder may bear that name
    assert "assets/objects" in names("asset")
    assert "published" not in names("protocol")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network and installed without dependencies: the folder to put first on the path."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels, target = folder / "source", folder / "wheels", folder / "target"
    source.mkdir()
    for name in ("nova3d", "configs", "assets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    alone = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *alone, "--no-build-isolation", "--wheel-dir", wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    assert wheel.stat().st_size < 60e6
    subprocess.run([*pip, "install", *alone, "--no-compile", "--target", target, wheel], check=True)
    return target


def run_installed(target: Path, folder: Path, *command: str | Path) -> str:
    """What a command prints in `folder`, with the installed package first on the path."""
    environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_has_everything_and_finds_it_by_name(installed: Path, tmp_path: Path) -> None:
    asked = [
        ["cpu", "config"],
        ["cpu", "config", "fusion"],
        ["mini", "protocol"],
        ["mini", "model"],
        ["assets/images/horse.png", "asset"],
    ]
    program = (
        "import json, sys, nova3d; from nova3d.utils import resources\n"
        "print(json.dumps([nova3d.__file__, *(str(resources.find(*names)) for names in json.loads(sys.argv[1]))]))"
    )
    paths = json.loads(run_installed(installed, tmp_path, sys.executable, "-c", program, json.dumps(asked)))
    assert [Path(path).relative_to(installed / "nova3d").as_posix() for path in paths] == [
        "__init__.py",
        "configs/fusion/cpu.yaml",
        "configs/fusion/cpu.yaml",
        "configs/eval/mini.yaml",
        "assets/nova3d-mini",
        "assets/images/horse.png",
    ]
    inside = {path.relative_to(installed / "nova3d") for path in (installed / "nova3d").rglob("*") if path.is_file()}
    for folder in ("configs", "assets"):
        shipped = {path.relative_to(root()) for path in (root() / folder).rglob("*") if path.is_file()}
        assert shipped <= inside
    code = {path.relative_to(ROOT / "nova3d") for path in (ROOT / "nova3d").rglob("*.py")}
    assert code <= inside
    assert Path("py.typed") in inside


def test_an_installed_package_runs_in_any_folder(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "nova3d"
    assert run_installed(installed, tmp_path, command, "generate", "--help").startswith("usage: nova3d generate ")
    program = (  # one process, since torch takes seconds to import
        "from nova3d import Nova3DPipeline; from nova3d.generation import default_config\n"
        "pipeline = Nova3DPipeline.load(default_config().sample.model)\n"
        "print(pipeline.config.steps, sum(p.numel() for p in pipeline.unet.parameters()) > 1e6)\n"
        "import sys; from nova3d import cli\n"
        "sys.argv = ['nova3d', 'doctor', '--model', 'mini']; cli.main()"
    )
    loaded, _, shown = run_installed(installed, tmp_path, sys.executable, "-c", program).partition("\n")
    assert loaded.split() == ["1", "True"]
    assert f"{installed / 'nova3d/assets/nova3d-mini'}: found, checksums fit" in shown
