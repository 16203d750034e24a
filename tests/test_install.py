"""What `make setup` installs, and that it leaves an environment to the clone that it was made for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "install.py"
# In place of pip: what would be installed, one line a call. Only the folder that is named is on the path.
PROGRAM = """
import json, runpy, subprocess, sys
subprocess.run = lambda command, check: print("RUN", json.dumps(command))
site, *sys.argv = json.loads(sys.argv[1])
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [site]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def install(tmp_path: Path, *arguments: str) -> tuple[list[list[str]], str, int]:
    """The calls of pip, the other output and the exit code, in an environment whose packages are `tmp_path`/site."""
    words = json.dumps([str(tmp_path / "site"), str(SCRIPT), *arguments])
    done = subprocess.run([sys.executable, "-I", "-S", "-c", PROGRAM, words], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    calls = [json.loads(line[4:]) for line in lines if line.startswith("RUN ")]
    said = "\n".join(line for line in lines if not line.startswith("RUN ")) + done.stderr
    return calls, said, done.returncode


def installed(tmp_path: Path, origin: str) -> None:
    """A record of nova3d in the environment, as pip writes it for an editable install."""
    record = tmp_path / "site" / "nova3d-0.1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: nova3d\nVersion: 0.1.0\n")
    (record / "direct_url.json").write_text(json.dumps({"url": f"file://{origin}", "dir_info": {"editable": True}}))


def test_extras_are_followed_and_the_package_itself_is_not_among_them(tmp_path: Path) -> None:
    calls, said, code = install(tmp_path, "dev", "-c", "constraints.txt")
    assert (code, said, len(calls)) == (0, "", 2)
    first, second = calls
    assert first[1:7] == ["-m", "pip", "install", "-q", "-c", "constraints.txt"]
    names = {requirement.split(">")[0] for requirement in first[7:]}
    assert {"torch", "rich", "pytest", "sphinx", "playwright", "tensorboard"} <= names and "ray" not in names
    assert not any(name.startswith("nova3d") for name in names)
    assert second[-3:] == ["--no-deps", "-e", str(ROOT)]


def test_an_environment_of_another_clone_keeps_its_package(tmp_path: Path) -> None:
    installed(tmp_path, "/somewhere/else")
    calls, said, _ = install(tmp_path, "")
    assert len(calls) == 1 and "-e" not in calls[0]
    assert "'/somewhere/else' and stays" in said


def test_an_environment_of_this_clone_is_brought_up_to_date(tmp_path: Path) -> None:
    installed(tmp_path, str(ROOT))
    calls, said, _ = install(tmp_path, "")
    assert calls[1][-2:] == ["-e", str(ROOT)] and said == ""


@pytest.mark.parametrize("extra", ["developer", "dev,none"])
def test_an_unknown_extra_is_one_line(tmp_path: Path, extra: str) -> None:
    calls, said, code = install(tmp_path, extra)
    assert code == 1 and not calls and said.startswith(f"error: '{extra.split(',')[-1]}' is none of the extras ")
