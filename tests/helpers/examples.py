"""Applies docs/how-to/extending.md to a checkout, as a reader does who follows it."""

import re
from pathlib import Path

FENCE = "```"
FILE = re.compile(r"It stands in `([^`]+)`:\n\n```python\n(.*?)```", re.S)
LINE = re.compile(r"^The one line, in (?:`(\w+)` of )?`([^`]+)`:\n\n```python\n(.*?\n)```", re.M | re.S)


def apply_page(page: Path, checkout: Path) -> list[str]:
    """Write the file and insert the line of every section of the page.

    Args:
        page: the page.
        checkout: the folder that has the package nova3d. Its files are changed.

    Returns:
        The headings of the sections.
    """
    _, *sections = re.split(r"^## ", page.read_text(), flags=re.M)
    for section in sections:
        (file,), (line,) = FILE.findall(section), LINE.findall(section)
        assert section.count(FENCE) == 4, f"a block of this section is neither the file nor the line: {section[:40]}"
        path, code = file
        assert not (checkout / path).exists()
        (checkout / path).write_text(code)
        registry, path, text = line
        lines = (checkout / path).read_text().splitlines(keepends=True)
        lines.insert(_place(lines, registry, text), text)
        (checkout / path).write_text("".join(lines))
    return [section.partition("\n")[0] for section in sections]


def _place(lines: list[str], registry: str, text: str) -> int:
    """The index of a new entry of the mapping `registry`, or of a new import of the package's own modules."""
    if registry:
        return 1 + next(i for i, line in enumerate(lines) if re.match(rf"{registry}\b.*{{$", line))
    package = text.partition(" import ")[0]
    return next(i for i, line in enumerate(lines) if line.startswith(f"{package}."))
