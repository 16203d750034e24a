"""Examples of the documentation as text that tests run."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def first_example(page: str, heading: str) -> str:
    """Return the first Python block below a second-level heading of a page in docs/."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(), re.M | re.S)
    assert section, f"{page} has no section '{heading}'"
    block = re.search(r"```python\n(.*?)```", section[1], re.S)
    assert block, f"section '{heading}' of {page} has no example"
    return block[1]
