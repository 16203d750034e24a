"""The examples of the documentation, to be run as they stand."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def run_example(page: str, section: str) -> dict[str, Any]:
    """Run the first Python block under the heading `section` of a page in docs/; returns the names it defined."""
    text = (DOCS / page).read_text(encoding="utf-8")
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.search(r"^```python\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    assert found, f"docs/{page} has no Python example under '{section}'"
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(found[1], f"docs/{page}", "exec"), names)
    return names
