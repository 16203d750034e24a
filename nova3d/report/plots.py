"""Loss curves as inline SVG: one small chart per loss, since their scales differ."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 320, 120
MAX_POINTS = 240  # more than the chart's pixels can show
LOG_ABOVE = 30.0  # a positive series whose largest value is this many times its smallest is drawn on a log axis
STEP_KEYS = ("step", "iteration")


def loss_charts(history: Sequence[Mapping[str, Any]]) -> str:
    """One <figure> per numeric key of the rows of `history`, in order of first appearance; "" without any.

    A row's "step" (or "iteration") is its place on the x axis, else its index. Rows lacking a key are skipped in its
    chart, values that are not finite are too.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for index, row in enumerate(history):
        step = next((float(row[key]) for key in STEP_KEYS if _is_number(row.get(key))), float(index))
        for key, value in row.items():
            if key not in STEP_KEYS and _is_number(value):
                series.setdefault(key, []).append((step, float(value)))
    return "\n".join(_chart(name, points) for name, points in series.items() if len(points) > 1)


def _chart(name: str, points: list[tuple[float, float]]) -> str:
    points = _thin(points)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    log = min(ys) > 0 and max(ys) > LOG_ABOVE * min(ys)
    heights = [math.log10(y) for y in ys] if log else ys
    x0, x_span = min(xs), (max(xs) - min(xs)) or 1.0
    y0, y_span = min(heights), (max(heights) - min(heights)) or 1.0
    line = " ".join(
        f"{(x - x0) / x_span * WIDTH:.1f},{HEIGHT - 4 - (y - y0) / y_span * (HEIGHT - 8):.1f}"
        for x, y in zip(xs, heights, strict=True)
    )
    label = f"{name}: from {ys[0]:.3g} at step {xs[0]:g} to {ys[-1]:.3g} at step {xs[-1]:g}"
    return (
        f'<figure class="chart"><figcaption><b>{escape(name)}</b><span>{ys[-1]:.3g}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" preserveAspectRatio="none">'
        f'<polyline points="{line}" vector-effect="non-scaling-stroke"/></svg>'
        f"<small><span>{min(ys):.3g} to {max(ys):.3g}{', log' if log else ''}</span>"
        f"<span>step {xs[-1]:g}</span></small></figure>"
    )


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS: the means of equal bins, but the ends as they are."""
    if len(points) <= MAX_POINTS:
        return points
    edges = [round(i * len(points) / (MAX_POINTS - 2)) for i in range(MAX_POINTS - 1)]
    bins = [points[a:b] for a, b in pairwise(edges)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]
    return [points[0], *means[1:-1], points[-1]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def bar_chart(names: Sequence[str], values: Sequence[float], unit: str) -> str:
    """One <svg> with a bar per value, from 0 to the largest; each has its name and value as a tooltip."""
    longest, step = max(*values, 1e-9), WIDTH / max(len(values), 1)
    bars = "".join(
        f'<rect x="{i * step + 1:.1f}" width="{max(step - 2, 1):.1f}" y="{HEIGHT * (1 - value / longest):.1f}" '
        f'height="{HEIGHT * value / longest:.1f}"><title>{escape(name)}: {value:.3g}{escape(unit)}</title></rect>'
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    )
    label = f"from {min(values):.3g}{unit} to {max(values):.3g}{unit}"
    return (
        f'<svg class="bars" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'preserveAspectRatio="none">{bars}</svg>'
    )
