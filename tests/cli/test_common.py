import logging
from pathlib import Path

import pytest

from nova3d.cli import common
from nova3d.errors import InputError
from tests.helpers.commands import run_script


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


def test_doctor_reports_a_missing_model_in_one_line_and_code_2(tmp_path: Path) -> None:
    done = run_script("doctor", "--model", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    for name in ("python", "torch", "torchvision", "nerfacc"):
        assert name in done.stdout


def test_doctor_is_content_with_a_whole_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    done = run_script("doctor", "--model", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all that is needed is here" in done.stdout
