"""Printing of metrics: their direction, unit and decimals, in tables of Markdown and LaTeX."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nova3d.metrics.registry import VIEW_METRICS, Style

NOT_STATED = "not stated"
CARRIED = ("commit", "weights", "seeds", "hardware")  # printed over every table, as NOT_STATED where they are absent


# The first pattern found in a metric's name counts. A side is the longest of the reference's bounding box.
_STYLES = (
    (re.compile(r"^(thin_share|side_width|parts)$"), Style(ranked=False)),
    (re.compile(r"^rim_angle_deg$"), Style(decimals=1, ranked=False)),
    (re.compile(r"psnr"), Style(False, "dB", 2)),
    (re.compile(r"mirror_margin"), Style(False, "side", 4)),
    (re.compile(r"chamfer|(^|_)cd(_|$)"), Style(True, "side", 4)),
    (re.compile(r"lpips"), Style(True)),
    (re.compile(r"_deg(_|$)"), Style(True, "", 2)),
    (re.compile(r"(^|_)(fid|cmmd)(_|$)"), Style(True, "", 3)),
    (re.compile(r"seconds"), Style(True, "s", 1)),
)


def style(metric: str) -> Style:
    """The style that a metric declares, else the one that its name implies, else higher is better, three decimals."""
    declared = VIEW_METRICS[metric].style if metric in VIEW_METRICS else None
    return declared or next((found for pattern, found in _STYLES if pattern.search(metric)), Style())


def header(metric: str) -> str:
    """The metric's name, its unit in brackets, and an arrow to the better direction."""
    unit = style(metric).unit
    return (f"{metric} [{unit}] {arrow(metric)}" if unit else f"{metric} {arrow(metric)}").rstrip()


def arrow(metric: str) -> str:
    """An arrow to the better direction; empty for a metric without one."""
    found = style(metric)
    return ("↓" if found.lower_is_better else "↑") if found.ranked else ""


def number(value: float, decimals: int, sign: bool = False) -> str:
    """`value` rounded for printing, never "-0.00"; a dash where it is nan."""
    if math.isnan(value):
        return "-"
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return text if float(text) else f"{0:.{decimals}f}"


def decimals_for(width: float, least: int) -> int:
    """Decimals that show two digits of an interval's half width, at least `least` and at most 8."""
    if not width > 0 or math.isinf(width):
        return least
    return min(8, max(least, 1 - math.floor(math.log10(width))))


def plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested mappings as JSON takes them: keys are text, nan is None."""
    return {
        str(key): plain(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and math.isnan(value)
        else value
        for key, value in values.items()
    }


def stated(facts: Mapping[str, str]) -> dict[str, str]:
    """`facts` led by the CARRIED ones, each "not stated" where it is absent."""
    return {name: facts.get(name, NOT_STATED) for name in CARRIED} | dict(facts)


@dataclass(frozen=True)
class TextRow:
    """One row of a TextTable."""

    name: str
    cells: tuple[str, ...]
    """"-" for none."""
    mark: Literal["", "bold", "italic"] = ""
    """Bold throughout, or the name alone in italics."""


@dataclass(frozen=True)
class TextTable:
    """A table of text: facts above, blocks of rows, notes below."""

    facts: Mapping[str, str]
    columns: tuple[str, ...]
    """The headers; the first is that of the rows' names."""
    blocks: tuple[tuple[TextRow, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """GitHub's Markdown; each fact has a line."""
        lines = [
            f"{name}: {_md(value)}  " for name, value in self.facts.items()
        ]  # two spaces: a line break in Markdown
        lines += [
            "",
            f"| {' | '.join(_md(cell) for cell in self.columns)} |",
            f"|:--|{'--:|' * (len(self.columns) - 1)}",
        ]
        for line in (line for block in self.blocks for line in block):
            mark = {"bold": "**", "italic": "*", "": ""}[line.mark]
            within = "**" if line.mark == "bold" else ""
            cells = [_md(cell) if cell == "-" else f"{within}{_md(cell)}{within}" for cell in line.cells]
            lines.append(f"| {mark}{_md_name(line.name)}{mark} | {' | '.join(cells)} |")
        lines.append("")
        if self.notes:
            lines += [*(f"- {_md(note)}" for note in self.notes), ""]
        return "\n".join(lines)

    def latex(self) -> str:
        r"""A table for the `booktabs` package; facts and notes are its caption."""
        lines = [
            "% \\usepackage{booktabs}",
            "\\begin{table}",
            "\\centering",
            f"\\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            "\\toprule",
            f"{' & '.join(_tex(cell) for cell in self.columns)} \\\\",
        ]
        for block in self.blocks:
            lines.append("\\midrule")
            for line in block:
                name = {"bold": "\\textbf{%s}", "italic": "\\emph{%s}", "": "%s"}[line.mark] % _tex(line.name)
                within = "\\textbf{%s}" if line.mark == "bold" else "%s"
                cells = ["--" if cell == "-" else within % _tex(cell) for cell in line.cells]
                lines.append(f"{' & '.join([name, *cells])} \\\\")
        said = [*(f"{name}: {value}" for name, value in self.facts.items()), *self.notes]
        lines += ["\\bottomrule", "\\end{tabular}", f"\\caption{{{'; '.join(_tex(text) for text in said)}.}}"]
        return "\n".join([*lines, "\\end{table}", ""])


_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "↑": "$\\uparrow$",
    "↓": "$\\downarrow$",
}


def _tex(text: str) -> str:
    escaped = "".join(_TEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])([+-])(?=\d)", r"$\1$", escaped)


def _md(text: str) -> str:
    """Text on one line, without a column's end and without HTML."""
    return " ".join(text.splitlines()).replace("|", "\\|").replace("<", "&lt;")


def _md_name(text: str) -> str:
    """The name of an object, which may be anything: neither a link nor code. Units in brackets stay."""
    return _md(text.replace("](", "]\\(").replace("`", "\\`"))
