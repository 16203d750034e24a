"""docs/how-to/extending.md, followed to the letter in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.examples import apply_page

ROOT = Path(__file__).parents[1]
# They use what the page adds, and run in the copy only.
USES = ("data", "layouts", "metrics", "models", "rendering", "training")
TESTS = 10


def test_every_block_of_the_page_can_be_applied_and_used(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("nova3d", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("assets", "configs", "docs", "pyproject.toml"):
        (checkout / name).symlink_to(ROOT / name)
    assert apply_page(ROOT / "docs/how-to/extending.md", checkout) == [
        "A render engine",
        "A source of objects",
        "A layout",
        "A metric",
        "An alignment arm",
    ]
    files = [f"tests/{room}/extending.py" for room in USES]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}", *files]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{TESTS} passed" in done.stdout, done.stdout
