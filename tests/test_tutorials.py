"""The tutorials and how-tos, run as they are written: commands and programs of a page, in order, in one folder.

A block whose paragraph begins with "Needs" is not run; tests/test_docs.py parses its commands.
"""

import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nova3d import cli
from tests.helpers.pages import blocks, lines

ROOT = Path(__file__).parents[1]
ELSEWHERE = "extending.md"  # its examples are run by the test_extending.py of each room
PAGES = sorted(
    page
    for folder in ("tutorials", "how-to")
    for page in (ROOT / "docs" / folder).glob("*.md")
    if page.name != ELSEWHERE
)


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a shell in the current folder; `nova3d` runs in this process."""
    words = shlex.split(line, comments=True)
    if words[0] != "nova3d":
        subprocess.run(["bash", "-ec", line], check=True, timeout=60)
        return
    monkeypatch.setattr(sys, "argv", words)
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, line


@pytest.mark.usefixtures("short_films")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT / "docs").as_posix())
def test_the_page_runs_as_it_is_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.needs or block.language not in ("bash", "python"):
            continue
        if block.language == "python":
            exec(compile(block.text, page.name, "exec"), names)
        else:
            for line in lines(block.text):
                run_line(line, monkeypatch)
