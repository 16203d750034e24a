"""Files written aside and renamed, and locks that a killed process does not keep."""

import multiprocessing
import time
from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.utils.files import locked, replacing, write_text


def hold(folder: Path) -> None:
    with locked(folder, name="plan"):
        (folder / "held").touch()
        time.sleep(60)


def test_a_lock_excludes_others_and_ends_with_a_killed_process(tmp_path: Path) -> None:
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path,))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(InputError, match="a render job is at work in"), locked(tmp_path, "a render job", "plan"):
        pass
    with locked(tmp_path), locked(tmp_path, name="pack"):  # other locks of the folder are free
        pass
    holder.kill()
    holder.join()
    with locked(tmp_path, name="plan", wait=True):
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    def hold_briefly() -> None:
        with locked(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(0.3)
            (tmp_path / "released").touch()

    holder = multiprocessing.get_context("fork").Process(target=hold_briefly)
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with locked(tmp_path, wait=True):
        assert (tmp_path / "released").exists()
    holder.join()


def test_an_equal_file_is_left_alone(tmp_path: Path) -> None:
    file = write_text(tmp_path / "a.txt", "ä\n")
    assert file.read_bytes() == "ä\n".encode()
    before = file.stat()
    write_text(file, "ä\n", keep_equal=True)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_text(file, "b\n", keep_equal=True)
    assert file.read_text() == "b\n" and list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_content_and_no_part(tmp_path: Path) -> None:
    file = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ValueError, match="stop"), replacing(file) as aside:
        aside.write_text("half")
        raise ValueError("stop")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
