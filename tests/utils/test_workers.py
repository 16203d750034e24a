"""Work shared out between processes: each has its part, and what goes wrong in one comes back in a line."""

import os
from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.utils.workers import in_parts

WORK = """
import os, pathlib, sys
from nova3d.errors import InputError

def work(folder, mode, part, parts, device, tell):
    if mode == "refuse" and part == 1:
        raise InputError("bad reference cup")
    if mode == "die" and part == 1:
        os._exit(9)
    pathlib.Path(folder, f"{part}-{parts}-{device}-{os.environ.get('OMP_NUM_THREADS')}").touch()
"""


def test_parts_run_in_processes_and_their_errors_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (tmp_path / "work_of_a_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    import work_of_a_test  # type: ignore[import-not-found]

    told = []
    (tmp_path / "done").mkdir()
    in_parts(partial(work_of_a_test.work, tmp_path / "done", ""), 2, "cpu", lambda: told.append(1))
    assert {p.name for p in (tmp_path / "done").iterdir()} == {"0-2-cpu-1", "1-2-cpu-1"} and told
    assert os.environ["OMP_NUM_THREADS"] == "3"
    with pytest.raises(InputError, match="bad reference cup"):
        in_parts(partial(work_of_a_test.work, tmp_path / "done", "refuse"), 2, "cpu", lambda: None)
    with pytest.raises(InputError, match="worker 1 of 2 ended with exit code 9"):
        in_parts(partial(work_of_a_test.work, tmp_path / "done", "die"), 2, "cpu", lambda: None)
