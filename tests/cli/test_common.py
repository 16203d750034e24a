import errno
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nova3d.cli import VERBS, common, doctor
from nova3d.errors import InputError
from tests.helpers.commands import ROOT, call_script


@pytest.fixture(autouse=True)
def keep_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


def test_bad_input_ends_in_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise InputError("image 'x.png'\n does not exist")

    with pytest.raises(SystemExit) as caught:
        common.run(main)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert err == "error: image 'x.png' does not exist\n"
    assert out == ""


def test_interrupt_ends_in_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        common.run(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_not_disguised_as_bad_input() -> None:
    def main() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        common.run(main)


def test_success_returns() -> None:
    ran = []
    common.run(lambda: ran.append(1))
    assert ran == [1]


def test_parser_shows_its_example_and_reads_overrides() -> None:
    parser = common.parser("Do a thing.", "python scripts/thing.py steps=3")
    common.add_config(parser, "configs/thing.yaml")
    assert "example:\n  python scripts/thing.py steps=3" in parser.format_help()
    arguments = parser.parse_args(["a=1", "b.c=2"])
    assert arguments.config == "configs/thing.yaml"
    assert arguments.overrides == ["a=1", "b.c=2"]


def test_doctor_reports_a_missing_model_in_one_line_and_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_script(monkeypatch, "doctor", "--model", tmp_path) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("error: ")
    assert str(tmp_path) in printed.err
    for name in ("python", "torch", "torchvision", "nerfacc"):
        assert name in printed.out


def test_doctor_is_content_with_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert call_script(monkeypatch, "doctor", "--model", tmp_path) == 0
    assert "all that is needed is here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/mesh.glb"), "No space left on device: '/out/mesh.glb'"),
        (OSError("the socket is closed"), "the socket is closed"),
    ],
)
def test_what_the_system_refuses_is_one_line(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        common.run(main)
    assert caught.value.code == 2 and capsys.readouterr().err == f"error: {line}\n"


def shell(command: str) -> "subprocess.CompletedProcess[str]":
    code = "from nova3d.cli import common; common.run(lambda: [print('x' * 100) for _ in range(10_000)])"
    line = command.replace("PYTHON", f'{sys.executable} -c "{code}"')
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=120)


def test_a_reader_that_leaves_early_ends_a_verb_in_silence() -> None:
    done = shell("PYTHON | head -c 1 > /dev/null; echo ${PIPESTATUS[0]}")
    assert done.stdout.strip() == "141" and done.stderr == ""


def test_an_output_that_cannot_be_written_is_one_line() -> None:
    done = shell("PYTHON > /dev/full")
    assert done.returncode == 2 and done.stderr == "error: No space left on device\n"


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "meta", "tpu"])
def test_an_unknown_device_is_one_line(device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}' is not available in torch here; use --device cpu"):
        common.pick_device(device)


def test_gpus_are_looked_for_without_using_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [common.pick_device(name) for name in ("cuda", "cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(InputError, match="device 'cuda:2' is not available in torch here; use --device cpu or cuda:0"):
        common.pick_device("cuda:2")


def test_the_doctor_says_what_a_verb_lacks_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.compat, "has", lambda package: package not in ("gradio", "av"))
    assert doctor.ability_line(doctor.ABILITIES["app"], 80.0) == (
        "NO: gradio is not installed: pip install 'nova3d[app]'"
    )
    line = doctor.ability_line(doctor.ABILITIES["generate"], 2 * doctor.REFERENCE_GFLOPS)
    assert ", about 24 s of one core (estimate)" in line and "mp4 turntables: pip install 'nova3d[video]'" in line
    monkeypatch.setattr(doctor.compat, "has", lambda package: True)
    assert "pip install" not in "".join(doctor.ability_line(each, 80.0) for each in doctor.ABILITIES.values())
    assert set(doctor.ABILITIES) <= set(VERBS)


def test_the_doctor_names_every_package_that_an_extra_brings_and_no_other() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for_work_on_the_code = {"browser", "notebook", "docs", "dev"}
    assert {extra for _, extra in doctor.OPTIONAL.values() if extra} == set(extras) - for_work_on_the_code
    assert all(package in doctor.OPTIONAL for ability in doctor.ABILITIES.values() for package in ability.needs)
    used = "".join(path.read_text() for path in (ROOT / "nova3d").rglob("*.py") if path.name != "doctor.py")
    assert [package for package in doctor.OPTIONAL if package not in used] == []


def test_the_first_accelerator_is_picked_and_a_wish_beats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for there, device in ((True, "mps"), (False, "cpu")):
        monkeypatch.setattr("torch.mps.is_available", lambda there=there: there)
        assert common.pick_device("") == device and common.pick_device("cpu") == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert common.pick_device("") == "cuda"
