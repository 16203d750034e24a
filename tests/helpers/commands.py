"""The scripts as a user runs them, in a process of their own or in this one."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from nova3d.cli import main

ROOT = Path(__file__).resolve().parents[2]


def run_script(name: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """`python scripts/NAME.py ARGUMENTS` from the repository root, in a process of its own with one thread."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def call_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str | Path) -> int:
    """The script in this process, where patches hold; returns its exit code. Logging stays as pytest set it up."""
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    try:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run_verb(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`nova3d ARGUMENTS` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["nova3d", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
