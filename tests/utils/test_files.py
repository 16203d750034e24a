"""Files written aside and renamed, and locks that a killed process does not keep."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from nova3d.errors import InputError
from nova3d.utils import provenance
from nova3d.utils.files import (
    append_json_lines,
    check_folder,
    check_replaceable,
    filling,
    inside,
    json_types,
    locked,
    read_json,
    read_json_lines,
    replacing,
    writable_folder,
    write_json,
    write_text,
    writing,
)


def test_a_file_in_the_place_of_a_folder_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_folder(str(tmp_path), "view folder") == tmp_path
    for name, what in (("file", "is no folder"), ("absent", "does not exist")):
        with pytest.raises(InputError, match=f"^view folder '.*{name}' {what}$"):
            check_folder(tmp_path / name, "view folder")


def test_a_folder_that_could_be_made_is_not_made_by_the_check(tmp_path: Path) -> None:
    assert writable_folder(str(tmp_path / "a" / "b"), make=False) == tmp_path / "a" / "b"
    assert writable_folder(tmp_path, make=False) == tmp_path and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for name in ("file", "file/b/c"):
        with pytest.raises(InputError, match=f"^cannot write to '.*{name}': Not a directory$"):
            writable_folder(tmp_path / name, make=False)


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


def write_result(folder: Path, text: str) -> None:
    (folder / "views").mkdir()
    (folder / "views/000.png").write_text(text)
    (folder / "mesh.glb").write_text(text)


def test_a_result_replaces_the_one_before_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "film.webp").write_text("old")
    (tmp_path / ".new-left").mkdir()  # what a killed process has left
    for text in ("first", "second"):
        with filling(tmp_path, stale=("film.*",)) as aside:
            write_result(aside, text)
        assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "views", "mesh.glb"}
        assert (tmp_path / "views/000.png").read_text() == (tmp_path / "mesh.glb").read_text() == text


def test_a_result_that_is_not_finished_leaves_the_one_before(tmp_path: Path) -> None:
    with filling(tmp_path) as aside:
        write_result(aside, "first")
    with pytest.raises(InputError), filling(tmp_path) as aside:
        (aside / "mesh.glb").write_text("second")
        raise InputError("stop")
    assert (tmp_path / "views/000.png").read_text() == (tmp_path / "mesh.glb").read_text() == "first"
    assert {p.name for p in tmp_path.iterdir()} == {"views", "mesh.glb"}


def test_folders_that_are_no_result_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    check_replaceable(tmp_path, ("rgb", "absent"))
    (tmp_path / "rgb/mine.png").write_text("mine")
    with pytest.raises(InputError, match="rgb' would be replaced, and is not a result"):
        check_replaceable(tmp_path, ("rgb", "absent"))
    (tmp_path / "record.json").write_text("{}")
    check_replaceable(tmp_path, ("rgb", "absent"))


def test_views_that_were_sampled_alone_are_a_result(tmp_path: Path) -> None:
    views = tmp_path / "views"
    write_json(views / "record.json", provenance.record("sample"))
    check_replaceable(tmp_path, ("views",))
    for content in (json.dumps(provenance.record("reference")), '{"stage": "sample"}', "[1]", "not JSON"):
        write_text(views / "record.json", content)
        with pytest.raises(InputError, match="views' would be replaced, and is not a result"):
            check_replaceable(tmp_path, ("views",))


def test_json_types_are_what_a_file_gives_back(tmp_path: Path) -> None:
    value = {"numbers": {1: (1, 2.5)}, "path": Path("a"), "none": None, "inner": {"on": True}}
    plain = json_types(value)
    assert plain == {"numbers": {"1": [1, 2.5]}, "path": "a", "none": None, "inner": {"on": True}}
    write_json(tmp_path / "value.json", value)
    assert plain == read_json(tmp_path / "value.json", dict)


def test_json_lines_name_the_line_or_leave_it_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{"a": 2}\n{"a": \n\xe9\n[3]\n')
    with pytest.raises(InputError, match=r"rows '.*rows.jsonl', line 4 is not valid JSON"):
        read_json_lines(file, "rows")
    assert read_json_lines(file, "rows", cut=True) == [{"a": 1}, {"a": 2}]
    assert "3 unfinished lines left out" in caplog.text
    with pytest.raises(InputError, match="cannot be read"):
        read_json_lines(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"1" * 5000, b'{"a": NaN}', b'{"x": "' + b"SECRET " * 9999 + b'\xe9"}', b"[1]"],
)
def test_json_that_is_no_object_is_one_short_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "x.json", dict)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value) and "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/dev/zero", "a/../../x", "a//b", "", 5, "a/.hidden"])
def test_a_list_names_files_below_its_own_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(InputError, match="weights"):
        inside(tmp_path, name, "weights")
    assert inside(tmp_path, "unet/model.safetensors", "weights") == tmp_path / "unet/model.safetensors"


def test_appended_lines_do_not_join_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_json_lines(file, [{"z": 1, "a": "ü"}, {"z": 2}])
    assert file.read_text() == '{"z": 1, "a": "\\u00fc"}\n{"z": 2}\n'
    with file.open("a") as torn:
        torn.write('{"z": 3, "a"')
    append_json_lines(file, [{"z": 4}])
    assert [row["z"] for row in read_json_lines(file, cut=True)] == [1, 2, 4]
    with pytest.raises(IsADirectoryError):
        append_json_lines(tmp_path, [{"z": 5}])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device", "a.txt"), "No space left on device"),
        (OSError("no quota\nleft"), "no quota"),  # a library's own, without the system's number
    ],
)
def test_a_failed_write_is_refused_with_the_systems_reason(error: OSError, reason: str) -> None:
    with pytest.raises(InputError) as caught, writing("the table 'a.txt'"):
        raise error
    assert str(caught.value) == f"cannot write the table 'a.txt': {reason}"
