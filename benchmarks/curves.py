#!/usr/bin/env python
"""Training curves of a run's stats.jsonl as one SVG picture for the documentation."""

from pathlib import Path

from nova3d.cli import common

WIDTH, HEIGHT, MARGIN = 300, 140, 34
COLOUR, GREY = "#2563a8", "#808080"


def main() -> None:
    arguments = common.parser(
        __doc__,
        "python benchmarks/curves.py --stats outputs/mini/stats.jsonl --keys loss_rgb loss_normal --out curves.svg",
    )
    arguments.add_argument("--stats", type=Path, required=True)
    arguments.add_argument("--keys", nargs="+", required=True)
    arguments.add_argument("--out", type=Path, required=True)
    options = arguments.parse_args()

    from nova3d.utils.files import read_json_lines, write_text

    rows = read_json_lines(options.stats, "statistics")
    charts = [chart(key, [(row["step"], row[key]) for row in rows if key in row]) for key in options.keys]
    placed = [f'<g transform="translate({i * (WIDTH + MARGIN)},0)">{body}</g>' for i, body in enumerate(charts)]
    total = len(charts) * (WIDTH + MARGIN)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + 2 * MARGIN}" width="{total}" '
        f'font-family="sans-serif" font-size="11" fill="{GREY}">{"".join(placed)}</svg>\n'
    )
    print(write_text(options.out, svg).resolve())


def chart(name: str, points: list[tuple[float, float]]) -> str:
    """One labelled curve on linear axes that start at the data's extremes."""
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    span = (high - low) or 1.0
    left = MARGIN

    def place(x: float, y: float) -> str:
        return f"{left + x / max(xs) * (WIDTH - left):.1f},{MARGIN + HEIGHT - (y - low) / span * HEIGHT:.1f}"

    line = " ".join(place(x, y) for x, y in points)
    bottom = MARGIN + HEIGHT
    return (
        f'<text x="{left}" y="{MARGIN - 12}" font-weight="bold">{name}</text>'
        f'<text x="0" y="{MARGIN + 8}">{high:.3g}</text><text x="0" y="{bottom}">{low:.3g}</text>'
        f'<text x="{left}" y="{bottom + 16}">0</text><text x="{WIDTH - 60}" y="{bottom + 16}">step {max(xs):.0f}</text>'
        f'<path d="M{left},{MARGIN}V{bottom}H{WIDTH}" fill="none" stroke="{GREY}"/>'
        f'<polyline points="{line}" fill="none" stroke="{COLOUR}" stroke-width="1.5"/>'
    )


if __name__ == "__main__":
    common.run(main)
