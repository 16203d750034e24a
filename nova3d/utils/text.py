"""Foreign text where people read it: no markup in Markdown, no formula in a spreadsheet, no endless names."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # OWASP: what a spreadsheet takes to begin a formula


def markdown(text: str) -> str:
    """Text on one line, in which Markdown reads no markup and a browser no element."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]>#|" else c for c in " ".join(text.split()))
    return escaped.replace("<", "&lt;")


def csv_cell(value: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would run gets an apostrophe before it; numbers stay."""
    if not isinstance(value, str) or not value.lstrip(" ").startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def shorten(name: str, length: int = 80) -> str:
    """A name from a file, cut for a message."""
    printable = "".join(c if c.isprintable() else "?" for c in name[: length + 1])
    return printable if len(printable) <= length else printable[:length] + "..."
