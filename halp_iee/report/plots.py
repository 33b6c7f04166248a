"""Charts as HTML, CSS and a little SVG: they fit any width, print well and take some kilobytes.

Plotly's library alone is 4.8 MB, which would leave the page next to nothing of its 5 MB, takes longer to start
than the rest of the page, and does not follow the reader's light or dark by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from halp_iee.report.text import esc

_MOST_POINTS = 400
_MOST_DOTS = 120


@dataclass(frozen=True)
class Series:
    """One line or cloud of points of a chart.

    Attributes:
        name: for the legend.
        color: a name of the style sheet's: ``slim``, ``dense``, ``grow``, ``prune``.
        points: (x, y).
        tips: text for each point, or empty.
        line: whether the points are joined.
        dots: whether every point is shown.
        dashed: for limits and references.
    """

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    tips: Sequence[str] = ()
    line: bool = True
    dots: bool = False
    dashed: bool = False


def chart(
    series: Sequence[Series],
    *,
    x_unit: str,
    y_unit: str = "",
    y_format: Callable[[float], str] = lambda value: f"{value:g}",
    x_format: Callable[[float], str] = lambda value: f"{value:g}",
    y_from_zero: bool = False,
    same_scale: bool = False,
    tall: bool = False,
) -> str:
    """Lines and points over two axes, with a legend; "" when there is nothing to draw."""
    series = [_thinned(one) for one in series if one.points]
    if not series:
        return ""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    if same_scale:
        xs = ys = [*xs, *ys]
    x_ticks = ticks(min(xs), max(xs), pad=same_scale)
    y_ticks = ticks(min([*ys, 0.0] if y_from_zero else ys), max(ys), pad=True)
    x_low, x_high = (x_ticks[0], x_ticks[-1]) if same_scale else (min(xs), max(xs))
    y_low, y_high = y_ticks[0], y_ticks[-1]
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        return 100 * (x - x_low) / (x_high - x_low), 100 * (y - y_low) / (y_high - y_low)

    lines = [
        f'<line x1="0" x2="100" y1="{100 - place(x_low, y)[1]:.2f}" y2="{100 - place(x_low, y)[1]:.2f}"/>'
        for y in y_ticks
    ]
    dots = []
    for one in series:
        placed = [place(x, y) for x, y in one.points]
        if one.line:
            path = " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in placed)
            dashed = ' class="dashed"' if one.dashed else ""
            lines.append(f'<polyline{dashed} style="--c:var(--{one.color})" points="{path}"/>')
        if not one.dashed and (one.dots or len(placed) <= _MOST_DOTS):
            quiet = "" if one.dots else ' class="quiet"'
            for (x, y), (at_x, at_y), tip in zip(one.points, placed, _tips(one), strict=True):
                text = tip or f"{one.name}: {y_format(y)} at {x_format(x)} {x_unit}"
                dots.append(
                    f'<i{quiet} style="--c:var(--{one.color});left:{at_x:.2f}%;bottom:{at_y:.2f}%" data-tip="{esc(text)}"></i>'
                )
    y_labels = "".join(
        f'<span style="bottom:{place(x_low, y)[1]:.2f}%">{esc(y_format(y))}</span>' for y in y_ticks
    )
    x_labels = "".join(
        f'<span style="left:{place(x, y_low)[0]:.2f}%">{esc(x_format(x))}</span>'
        for x in x_ticks
        if x_low <= x <= x_high
    )
    above = f'<p class="unit above">{esc(y_unit)}</p>' if y_unit else ""
    return (
        f"{legend([(one.name, one.color, one.dashed) for one in series])}"
        f'<figure>{above}<div class="chart{" tall" if tall else ""}"><div class="yaxis">{y_labels}{_widest(y_ticks, y_format)}</div>'
        f'<div class="area"><svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{"".join(lines)}</svg>'
        f'{"".join(dots)}</div><div class="xaxis">{x_labels}</div></div><p class="unit">{esc(x_unit)}</p></figure>'
    )


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """(name, colour, dashed) each; a name that comes twice is shown once."""
    shown = dict.fromkeys(entries)
    items = (
        f'<span{" class=dashed" if dashed else ""} style="--c:var(--{color})">{esc(name)}</span>'
        for name, color, dashed in shown
    )
    return f'<div class="legend">{"".join(items)}</div>'


def bar_row(name: str, dense: float, slim: float, value: str, *, tip: str, frozen: bool = False) -> str:
    """A row with two bars, one in the other: ``dense`` and ``slim`` are shares of the full width, 0 to 1."""
    return (
        f'<div class="row"><span class="name">{esc(name)}</span>'
        f'<span class="bars{" frozen" if frozen else ""}" data-tip="{esc(tip)}">'
        f'<i class="d" style="width:{_percent(dense)}"></i><i class="s" style="width:{_percent(slim)}"></i></span>'
        f'<span class="value">{value}</span></div>'
    )


def stacks(
    bars: Sequence[tuple[str, str, Sequence[tuple[str, float]]]], scale: float, mark: float | None
) -> str:
    """Horizontal bars of segments: (label, colour, ((tip, value), ...)); ``scale`` is the full width."""
    parts = []
    at = (
        ""
        if mark is None or not 0 <= mark <= scale
        else f'<span class="mark" style="left:{_percent(mark / scale)}"></span>'
    )
    for label, color, segments in bars:
        inner = "".join(
            f'<i style="width:{_percent(value / scale)}" data-tip="{esc(tip)}"></i>'
            for tip, value in segments
            if value > 0
        )
        parts.append(
            f'<span class="soft">{esc(label)}</span><div class="track"><div class="stack" style="--c:var(--{color})">{inner}</div>{at}</div>'
        )
    return f'<div class="stacks">{"".join(parts)}</div>'


def ticks(low: float, high: float, *, pad: bool = False, about: int = 4) -> list[float]:
    """Round values, 1, 2 or 5 times a power of ten apart; with ``pad`` they enclose the range."""
    if high <= low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - (spread if pad else 0), high + spread
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9) if pad else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9) if pad else math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)] or [low]


def _thinned(series: Series) -> Series:
    """At most some hundred points, first and last kept: a page is no data file."""
    count = len(series.points)
    if count <= _MOST_POINTS:
        return series
    chosen = [round(i * (count - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)]
    tips = [series.tips[i] for i in chosen] if len(series.tips) == count else ()
    return Series(
        series.name,
        series.color,
        [series.points[i] for i in chosen],
        tips,
        series.line,
        series.dots,
        series.dashed,
    )


def _tips(series: Series) -> Sequence[str]:
    return series.tips if len(series.tips) == len(series.points) else [""] * len(series.points)


def _widest(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Holds the axis open: its labels are placed absolutely and take no room themselves."""
    text = max((form(value) for value in values), key=len, default="")
    return f'<div style="visibility:hidden;height:0">{esc(text)}</div>'


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
