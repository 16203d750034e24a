"""Modules that a user names are imported in every process of a run, and what is no module is refused in one line."""

import sys
from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.utils.plugins import import_modules
from nova3d.utils.workers import in_parts, in_pool

ARMS = """
import os, pathlib
pathlib.Path(f"imported-{os.getpid()}").touch()
"""
JOB = """
def work(part, parts, device, tick):
    pass

def prepare(device):
    return str
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; Python's path, its modules and the environment are restored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("NOVA3D_IMPORTED", "")
    (tmp_path / "arms_of_a_user.py").write_text(ARMS)
    (tmp_path / "job_of_a_test.py").write_text(JOB)
    monkeypatch.delitem(sys.modules, "arms_of_a_user", raising=False)
    return tmp_path


def test_a_module_is_imported_here_and_in_every_process_that_is_started(folder: Path) -> None:
    import_modules(["arms_of_a_user"])
    import job_of_a_test  # type: ignore[import-not-found]

    assert len(list(folder.glob("imported-*"))) == 1
    in_parts(job_of_a_test.work, 2, "cpu", lambda: None)
    assert len(list(folder.glob("imported-*"))) == 3
    in_pool(job_of_a_test.prepare, ["a task"], 1, "cpu", lambda *_: None)
    assert len(list(folder.glob("imported-*"))) == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("arms_of_a_usr", "--import: no module 'arms_of_a_usr' on Python's path or in '"),
        ("arms_of_a_user.gated", "no module 'arms_of_a_user.gated'"),
        ("arms_of_a_user.py", "takes the name of a module, as in 'import my_arms', not 'arms_of_a_user.py'"),
        ("./arms_of_a_user", "takes the name of a module"),
        ("", "takes the name of a module"),
        ("broken", "--import broken: No module named 'numpyy'"),
    ],
)
def test_what_is_no_module_is_refused(folder: Path, name: str, said: str) -> None:
    (folder / "broken.py").write_text("import numpyy\n")
    with pytest.raises(InputError) as caught:
        import_modules([name])
    assert said in str(caught.value)
