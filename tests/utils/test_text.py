"""Text of strangers in tables: no markup in Markdown, no formula in a spreadsheet."""

import csv
from pathlib import Path

import pytest

from nova3d.data.jobs.attribution import write_attribution
from nova3d.errors import InputError
from nova3d.evaluation.formats import TextRow, TextTable
from nova3d.utils.text import csv_cell, markdown


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", " =1", "\r=1"])
def test_a_formula_is_text_to_a_spreadsheet(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=b", "-0.5", "+1e-3", "", 3, -2.5, None])
def test_numbers_and_plain_text_stay(value: object) -> None:
    assert csv_cell(value) == value


def test_markdown_of_a_stranger_is_one_line_of_text() -> None:
    assert markdown("[x](javascript:1) <b>\n# *a_b* `c`|") == r"\[x\](javascript:1) &lt;b\> \# \*a\_b\* \`c\`\|"


def test_attribution_of_strangers(tmp_path: Path) -> None:
    rows = [
        {"uid": "a", "title": '=HYPERLINK("http://evil.example")', "licence": "x](y) <script>\n# Owned\n", "url": "@S"},
        {"uid": "b`<img src=x>", "title": "<script>", "attribution": "by [x](y)", "licence": "MIT"},
    ]
    page = write_attribution(rows, tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in page and "<img" not in page and "\n# Owned" not in page and "[x](y)" not in page
    with (tmp_path / "attribution.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "'@S" in cells and not any(cell.startswith(("=", "+", "@")) for cell in cells)


def test_attribution_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nova3d.data.jobs.attribution.write_text", full)
    with pytest.raises(InputError, match=r"cannot write the attribution to .*No space left"):
        write_attribution([{"uid": "a"}], tmp_path)


def test_names_of_objects_are_no_markup_in_a_table() -> None:
    table = TextTable({"by": "<b>"}, ("object",), ((TextRow("<img src=x>[a](b)`c`", ()),),), ("failed: <i>\nx",))
    text = table.markdown()
    assert "<" not in text and r"[a]\(b)\`c\`" in text and "- failed: &lt;i> x" in text
