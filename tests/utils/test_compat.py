"""The torchvision repair, against a fake package that breaks as the CUDA wheel does beside a CPU torch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nova3d.utils import compat

IMPORT_UNET = "from diffusers import UNetSpatioTemporalConditionModel as m; print('imported', m.__name__)"
ENSURE = "from nova3d.utils.compat import ensure_torchvision as e; print(e(), e());"

# Registering a fake kernel for an operator nobody declared raises the very error the real wheel does.
INIT = """
from . import _meta_registrations, io, transforms
__version__ = "0.28.0"
"""
META = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return scores
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return scores
"""
# transformers takes many names from here; which ones changes with its release, so any name is served.
TRANSFORMS = """
import enum
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"
"""
# Runs one program for every line of its input, each in a process forked when torch is imported and nothing else is.
SERVER = """
import json, os, sys, traceback
import torch._dynamo, torch.distributed.fsdp
for line in sys.stdin:
    program, path, *files = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    sys.path.insert(0, path)
    for number, file in zip((1, 2), files):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    try:
        exec(program, {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
"""


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[[str, Path], Done]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a program in a process that has imported torch and has a folder first on its path."""
    files = [tmp_path_factory.mktemp("python") / name for name in ("out", "err")]
    root = Path(compat.__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        asked, answers = server.stdin, server.stdout
        assert asked and answers

        def run(program: str, path: Path) -> Done:
            asked.write(json.dumps([program, *map(str, (path, *files))]) + "\n")
            asked.flush()
            return Done(int(answers.readline()), *(file.read_text() for file in files))

        yield run
        asked.close()


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that holds a torchvision whose operators are not declared."""
    package = tmp_path / "torchvision"
    for folder in ("transforms", "transforms/v2", "io"):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").write_text("")
    (package / "__init__.py").write_text(INIT)
    (package / "_meta_registrations.py").write_text(META)
    (package / "transforms/__init__.py").write_text("from .functional import InterpolationMode\n")
    (package / "transforms/functional.py").write_text(TRANSFORMS)
    (package / "transforms/v2/functional.py").write_text(TRANSFORMS)
    information = tmp_path / "torchvision-0.28.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    return tmp_path


def test_without_the_repair_a_broken_torchvision_takes_diffusers_down(python: Run, fake: Path) -> None:
    done = python(IMPORT_UNET, fake)
    assert done.returncode != 0
    assert "operator torchvision::nms does not exist" in done.stderr


def test_with_the_repair_diffusers_imports_and_the_log_says_so_once(python: Run, fake: Path) -> None:
    done = python(ENSURE + IMPORT_UNET, fake)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["repaired repaired", "imported UNetSpatioTemporalConditionModel"]
    assert done.stderr.count("do not fit this torch") == 1


def test_the_repair_works_after_a_first_failed_import(python: Run, fake: Path) -> None:
    program = "import contextlib\nwith contextlib.suppress(RuntimeError):\n    import torchvision\n" + ENSURE
    assert python(program + "import torchvision.io", fake).stdout.split() == ["repaired", "repaired"]


def test_a_sound_torchvision_is_left_alone(python: Run, fake: Path) -> None:
    (fake / "torchvision/_meta_registrations.py").write_text("")
    done = python(ENSURE + "import torch; print(hasattr(torch.ops.torchvision, 'nms'))", fake)
    assert done.stdout.split() == ["sound", "sound", "False"]
    assert done.stderr == ""


def test_another_breakage_is_named_and_not_hidden(python: Run, fake: Path) -> None:
    (fake / "torchvision/_meta_registrations.py").write_text("raise ImportError('libcudart is gone')")
    done = python(ENSURE, fake)
    assert done.returncode != 0
    assert "InputError: torchvision is installed but cannot be imported (libcudart is gone)" in done.stderr


def test_absent_torchvision_is_fine(python: Run, tmp_path: Path) -> None:
    program = "import sys, importlib.util as u; f = u.find_spec; "
    program += "u.find_spec = lambda name, *a: None if name == 'torchvision' else f(name, *a); "
    assert python(program + ENSURE, tmp_path).stdout.split() == ["absent", "absent"]


def test_has() -> None:
    assert compat.has("torch")
    assert not compat.has("a_package_nobody_has")
