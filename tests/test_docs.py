"""README, CONTRIBUTING and docs/ name what exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova3d import cli
from nova3d.cli import common
from nova3d.cli.render import STEPS, render_parser
from nova3d.utils import resources
from tests.helpers.pages import commands, mentions

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PATH = re.compile(r"(?<![\w./-])(?:nova3d|configs|scripts|benchmarks|tests|docs|assets)/[\w./*-]+")
NEW = re.compile(r"It stands in `([^`]+)`")  # the files that docs/how-to/extending.md adds
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")
ROW = re.compile(r"^\| `(nova3d/[^`]+)` \|", re.MULTILINE)


FOREIGN = "## Where the facts are from"  # files of other repositories


RESULTS = sorted((ROOT / "docs/results").glob("*.md"))
MOST_SENTENCES = 5
NO_PROSE = re.compile(r"^(?:\||!\[| {4}).*$", re.MULTILINE)  # tables, pictures, commands
PARAGRAPH = re.compile(r"\n(?:\s*\n|(?=[-*] |\d+\. ))")
SENTENCE = re.compile(r"(?<=[.!?])[*_)]*\s+(?=[A-Z*`\[(\d\"])")


def sentences(text: str) -> dict[str, list[str]]:
    """Heading of a page -> the sentences below it, up to the next heading; items of lists count as sentences."""
    _, *parts = re.split(r"^#+ (.+)$", NO_PROSE.sub("\n", re.sub(r"```.*?```", "", text, flags=re.DOTALL)), flags=re.M)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(sections) == len(parts) // 2, "two sections have one heading"
    return {
        heading: [part for block in PARAGRAPH.split(body) for part in SENTENCE.split(" ".join(block.split())) if part]
        for heading, body in sections.items()
    }


def test_sentences_are_counted_without_tables_and_commands() -> None:
    page = "# Page\nOne. Two\ngoes on, 0.5 of it.\n\n    a command. B\n\n| a. B |\n\n"
    page += "## Next\n- Three.\n- Four: `x`. *Five.*\n"
    assert sentences(page) == {
        "Page": ["One.", "Two goes on, 0.5 of it."],
        "Next": ["- Three.", "- Four: `x`.", "*Five.*"],
    }


@pytest.mark.parametrize("page", RESULTS, ids=lambda path: path.stem)
def test_a_section_of_results_is_a_table_and_a_few_sentences(page: Path) -> None:
    found = sentences(page.read_text())
    assert found
    assert not {heading: said for heading, said in found.items() if len(said) > MOST_SENTENCES}


def names(page: Path) -> set[str]:
    """Paths of this repository that a page names."""
    return {name.rstrip(".") for name in PATH.findall(page.read_text().partition(FOREIGN)[0])}


def rooms() -> list[str]:
    """README's map, in its order."""
    return ROW.findall((ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    new = set(NEW.findall(text))
    assert not [name for name in new if (ROOT / name).exists()]
    missing = [name for name in names(page) - new if not list(ROOT.glob(name.rstrip("/")))]
    missing += [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert not missing


def test_the_pages_name_paths() -> None:
    named = set().union(*map(names, PAGES))
    assert {"nova3d/cameras.py", "configs/fusion/cpu.yaml", "benchmarks/cutout.py"} <= named


def parser_of(words: list[str]) -> common.Parser:
    """The parser of a command, and of the step of `render` that its second word may name."""
    step = words[1] if words[0] == "render" and words[1:] and words[1] in STEPS else ""
    return render_parser(words.pop(1)) if step else cli.parser_of(words[0])


def known(parser: common.Parser) -> set[str]:
    """The options of a verb and what may stand before "=" for it."""
    options = parser.option_strings()
    return {*options, *(name.lstrip("-") for name in options), *parser.config_keys()}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_ones_that_their_verbs_take(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "import_modules", lambda names: None)  # modules of the reader's own
    for words in commands(page):
        parser = parser_of(words)
        try:
            options = parser.parse(words[1:])
        except SystemExit:
            pytest.fail(f"nova3d {' '.join(words)}: {capsys.readouterr().err}")
        given = {text.partition("=")[0] for text in getattr(options, "overrides", [])}
        assert not given - known(parser), f"nova3d {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_prose_name_options_and_keys_that_exist(page: Path) -> None:
    for words in mentions(page):
        parser = parser_of(words)
        given = {word.partition("=")[0] for word in words[1:] if word.startswith("--") or "=" in word}
        assert not given - known(parser) - {"elevation_deg"}, f"nova3d {' '.join(words)}"


def test_the_map_has_every_file_and_folder_of_the_package_once() -> None:
    found = {
        f"nova3d/{path.name}" + "/" * path.is_dir()
        for path in (ROOT / "nova3d").iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }
    assert sorted(rooms()) == sorted(found)


def test_the_reference_lists_every_shipped_config() -> None:
    page = (ROOT / "docs/reference/commands.md").read_text()
    listed = page.partition("## Shipped configs\n")[2].partition("\n## ")[0]
    stages = {cli.parser_of(verb).stage for verb in cli.VERBS} - {"", "app", "eval", "reproduce"}
    stages |= {"ablation", "preset"}
    shipped = {name for stage in stages for name in resources.names("config", stage)}
    assert {"cpu", "mini-autoencoder", "48gb", "attention-cpu"} <= shipped
    assert not {name for name in shipped if f"`{name}`" not in listed}


def imports(path: Path) -> Iterator[str]:
    """Modules of nova3d that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "nova3d":
            yield from (f"nova3d.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_a_room_imports_only_rooms_above_it_in_the_map() -> None:
    order = {room.removeprefix("nova3d/").strip("/").removesuffix(".py"): n for n, room in enumerate(rooms())}
    upward = []
    for path in sorted((ROOT / "nova3d").rglob("*.py")):
        room = path.relative_to(ROOT / "nova3d").parts[0].removesuffix(".py")
        for module in imports(path) if room in order else ():
            other = module.split(".")[1] if module.startswith("nova3d.") else room
            if order.get(other, -1) > order[room]:
                upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upward
