"""The commands and programs of the documentation's pages, for tests that check or run them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

INLINE = re.compile(r"`(nova3d [^`\n]+)`")
VERB = re.compile(r"(?:^|-m |\s)nova3d (?=[a-z])")
PROSE = re.compile(r"[\w.]+ = |import |from |#")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    needs: str
    """The paragraph above it that says what it needs, where that begins with "Needs"; else ""."""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    language: str | None = None
    inside: list[str] = []
    above = ""
    for line in page.read_text().splitlines():
        if language is None and line.startswith("```"):
            language, inside = line[3:].strip(), []
        elif line.startswith("```"):
            needs = above if above.startswith("Needs ") else ""
            found.append(Block(language or "", "\n".join(inside) + "\n", needs))
            language, above = None, ""
        elif language is not None:
            inside.append(line)
        elif line.strip():
            above = line.strip()
    return found


def lines(text: str) -> list[str]:
    """The lines of a shell text: continued ones joined, comments and blank ones left out."""
    joined = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in joined if line and not line.startswith("#")]


def words(line: str) -> list[str] | None:
    """The words behind `nova3d` in a line of a shell, None where it holds no whole command."""
    start = VERB.search(line)
    if not start or "..." in line or PROSE.match(line):
        return None
    rest = re.split(r"\s(?:&|&&|\|\||\|)(?:\s|$)", line[start.end() :])[0]
    if rest.count("'") % 2:
        rest = rest.rstrip("'")  # of a quote that the line around the command opened
    return shlex.split(rest, comments=True)


def commands(page: Path) -> list[list[str]]:
    """The words behind `nova3d` of every whole command in the blocks of a page."""
    indented = "\n".join(line if line.startswith("    ") else "" for line in page.read_text().splitlines())
    shown = [line for block in blocks(page) for line in lines(block.text)] + lines(indented)
    return [found for line in shown if (found := words(line))]


def mentions(page: Path) -> list[list[str]]:
    """The words behind `nova3d` between backquotes in the prose of a page: commands, or the part that is spoken of."""
    return [found for text in INLINE.findall(page.read_text()) if (found := words(text))]
