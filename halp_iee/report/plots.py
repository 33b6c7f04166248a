"""Charts as HTML, CSS and a little SVG: they fit any width, print well and take some kilobytes.

Plotly's library alone is 4.8 MB, which would leave the page next to nothing of its 5 MB, takes longer to start
than the rest of the page, and does not follow the reader's light or dark by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from halp_iee.report.text import esc

_LARGEST = 1e15
_SMALLEST = 1e-30
_NOTHING = 1e-9  # a range this small beside its values is none
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
    series = [drawn for one in series if (drawn := _drawable(one)).points]
    if not series:
        return ""
    frame = _Frame.around(series, y_from_zero, same_scale)
    lines = "".join(
        f'<line x1="0" x2="100" y1="{100 - frame.up(y):.2f}" y2="{100 - frame.up(y):.2f}"/>' for y in frame.y_ticks
    )
    lines += "".join(_polyline(one, frame) for one in series if one.line)
    dots = "".join(_dots(one, frame, lambda x, y: f"{y_format(y)} at {x_format(x)} {x_unit}") for one in series)
    y_labels = "".join(f'<span style="bottom:{frame.up(y):.2f}%">{esc(y_format(y))}</span>' for y in frame.y_ticks)
    x_labels = "".join(f'<span style="left:{frame.along(x):.2f}%">{esc(x_format(x))}</span>' for x in frame.x_ticks)
    above = f'<p class="unit above">{esc(y_unit)}</p>' if y_unit else ""
    size = "chart tall" if tall else "chart"
    return (
        f"{legend([(one.name, one.color, one.dashed) for one in series])}<figure>{above}"
        f'<div class="{size}"><div class="yaxis">{y_labels}{_widest(frame.y_ticks, y_format)}</div><div class="area">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>{dots}</div>'
        f'<div class="xaxis">{x_labels}</div></div><p class="unit">{esc(x_unit)}</p></figure>'
    )


@dataclass(frozen=True)
class _Frame:
    """The ranges of both axes, their ticks, and where a value lies in percent."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    @classmethod
    def around(cls, series: Sequence[Series], y_from_zero: bool, same_scale: bool) -> _Frame:
        xs = [x for one in series for x, _ in one.points]
        ys = [y for one in series for _, y in one.points]
        if same_scale:
            xs = ys = [*xs, *ys]
        y_ticks = ticks(min([*ys, 0.0] if y_from_zero else ys), max(ys), pad=True)
        if same_scale:
            return cls((y_ticks[0], y_ticks[-1]), (y_ticks[0], y_ticks[-1]), y_ticks, y_ticks)
        low, high = min(xs), max(xs)
        if _is_point(low, high):
            low, high = low - 0.5 - abs(low) * 1e-6, high + 0.5 + abs(high) * 1e-6
        whole = all(float(x).is_integer() for x in xs)  # epochs, steps and channels have no halves
        tried = [
            [t for t in ticks(low, high, about=about) if low <= t <= high and (t.is_integer() or not whole)]
            for about in (4, 6, 8)
        ]
        x_ticks = next((some for some in tried if len(some) > 2), tried[0])
        return cls((low, high), (y_ticks[0], y_ticks[-1]), x_ticks, y_ticks)

    def along(self, x: float) -> float:
        return 100 * (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])

    def up(self, y: float) -> float:
        return 100 * (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])


def _polyline(series: Series, frame: _Frame) -> str:
    path = " ".join(f"{frame.along(x):.2f},{100 - frame.up(y):.2f}" for x, y in series.points)
    style = ' class="dashed"' if series.dashed else ""
    return f'<polyline{style} style="--c:var(--{series.color})" points="{path}"/>'


def _dots(series: Series, frame: _Frame, describe: Callable[[float, float], str]) -> str:
    """A point each; on a line they are there for the pointer only."""
    if series.dashed or (len(series.points) > _MOST_DOTS and not series.dots):
        return ""
    style = "" if series.dots else ' class="quiet"'
    tips = series.tips or [f"{series.name}: {describe(x, y)}" for x, y in series.points]
    return "".join(
        f'<i{style} style="--c:var(--{series.color});left:{frame.along(x):.2f}%;bottom:{frame.up(y):.2f}%"'
        f' data-tip="{esc(tip)}"></i>'
        for (x, y), tip in zip(series.points, tips, strict=True)
    )


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """(name, colour, dashed) each; a name that comes twice is shown once."""
    items = (
        f'<span class="{"dashed" if dashed else "full"}" style="--c:var(--{color})">{esc(name)}</span>'
        for name, color, dashed in dict.fromkeys(entries)
    )
    return f'<div class="legend">{"".join(items)}</div>'


def bar_row(
    name: str,
    dense: float,
    slim: float,
    value: str,
    *,
    tip: str,
    frozen: bool = False,
    marks: Sequence[float] = (),
) -> str:
    """A row with two bars, one in the other: ``dense`` and ``slim`` are shares of the full width, 0 to 1.

    ``value`` is HTML; the rest is escaped. ``marks`` are ticks at such shares.
    """
    ticked = "".join(f'<u style="left:{_percent(mark)}"></u>' for mark in marks)
    style = "bars frozen" if frozen else "bars"
    return (
        f'<div class="row"><span class="name">{esc(name)}</span><span class="value">{value}</span>'
        f'<span class="{style}" data-tip="{esc(tip)}"><i class="d" style="width:{_percent(dense)}"></i>'
        f'<i class="s" style="width:{_percent(slim)}"></i>{ticked}</span></div>'
    )


def stacks(bars: Sequence[tuple[str, str, Sequence[tuple[str, float]]]], scale: float, mark: float | None) -> str:
    """Horizontal bars of segments: (label, colour, ((tip, value), ...)); ``scale`` is the full width."""
    line = ""
    if mark is not None and 0 <= mark <= scale:
        line = f'<span class="mark" style="left:{_percent(mark / scale)}"></span>'
    parts = []
    for label, color, segments in bars:
        inner = "".join(
            f'<i style="width:{_percent(value / scale)}" data-tip="{esc(tip)}"></i>'
            for tip, value in segments
            if value > 0
        )
        parts.append(
            f'<span class="soft">{esc(label)}</span><div class="track">'
            f'<div class="stack" style="--c:var(--{color})">{inner}</div>{line}</div>'
        )
    return f'<div class="stacks">{"".join(parts)}</div>'


def ticks(low: float, high: float, *, pad: bool = False, about: int = 4) -> list[float]:
    """Round values, 1, 2 or 5 times a power of ten apart; with ``pad`` they enclose the range."""
    if _is_point(low, high):
        spread = abs(low) * 0.1 if abs(low) > _SMALLEST else 1.0
        low, high = low - (spread if pad else 0), high + spread
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9) if pad else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9) if pad else math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)] or [low]


def _is_point(low: float, high: float) -> bool:
    return high - low <= max(_SMALLEST, _NOTHING * max(abs(low), abs(high)))


def _drawable(series: Series) -> Series:
    """Without points out of any scale, and at most some hundred of them: a page is no data file."""
    tips = series.tips if len(series.tips) == len(series.points) else ("",) * len(series.points)
    kept = [
        (point, tip)
        for point, tip in zip(series.points, tips, strict=True)
        if all(abs(value) < _LARGEST for value in point)
    ]
    if len(kept) > _MOST_POINTS:
        kept = [kept[round(i * (len(kept) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]
    shown = [tip for _, tip in kept] if series.tips else ()
    return replace(series, points=[point for point, _ in kept], tips=shown)


def _widest(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Holds the axis open: its labels are placed absolutely and take no room themselves."""
    text = max((form(value) for value in values), key=len, default="")
    return f'<div style="visibility:hidden;height:0">{esc(text)}</div>'


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
