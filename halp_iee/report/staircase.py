"""A latency table's staircases as a page: what a device likes, and which channel counts are traps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import halp_iee
from halp_iee.latency.table import LatencyTable
from halp_iee.report.html import as_json, page
from halp_iee.report.plots import Series, chart
from halp_iee.report.text import esc
from halp_profiler.kernel import Kernel
from halp_profiler.staircase import AXES, Staircase, held_out, staircase, width_of

_MOST_WORDS = 12
_NEAR = 0.002  # of the highest latency: points this near a straight line are not drawn


def staircases(table: LatencyTable, kernel: Kernel) -> list[Staircase]:
    """The kernel's lines with more than one width, the output's axis first."""
    surface, points = table.surface(kernel), table.points(kernel)
    axes = ("in",) if kernel.diagonal else AXES[::-1]
    found = [staircase(surface, points, axis) for axis in axes]
    return [line for line in found if len(line.widths) > 1] or found[:1]


def render(table: LatencyTable, kernels: Sequence[Kernel]) -> str:
    """A self-contained page with a chart for every axis of every kernel, the dearest first as given."""
    modelled = table.source == "modelled"
    banner = (
        '<div class="banner"><strong>Modelled, not measured</strong>'
        "<p>These latencies were computed from the device's datasheet.</p></div>"
        if modelled
        else ""
    )
    header = table.header
    facts = f"{header.backend} {header.backend_version}, {header.precision}, {header.layout}, batch {table.batch}"
    facts += f", {table.threads} thread{'s' if table.threads != 1 else ''}" if table.threads else ""
    heading = (
        f'{banner}<header><p class="over">{esc(facts)}</p><h1>Which channel counts {esc(table.device)} likes</h1>'
        f'<p class="soft">{len(table)} points, {esc(table.source)}. A line is the latency at every channel count as '
        "interpolated between the points; a step is where one channel more needs another block of the runtime."
        "</p></header>"
    )
    lines = {kernel.key: staircases(table, kernel) for kernel in kernels}
    body = heading + "".join(_section(key, found, modelled) for key, found in lines.items())
    document = {
        "table": table.summary(),
        "kernels": {key: [x.to_json() for x in found] for key, found in lines.items()},
    }
    return page(f"{table.device}: staircases", body, f"Made by halp-iee {halp_iee.__version__}", as_json(document))


def shape(line: Staircase) -> str:
    """What is said of a line on which no width is better than its neighbours."""
    if float(line.ms.max()) <= 1.1 * float(line.ms.min()):
        return f"Flat: {line.widths[-1]} channels cost about as little as {line.widths[0]}."
    return "No steps: every channel more costs about the same."


def advice(line: Staircase) -> tuple[str, str]:
    """What the device likes and which widths are traps, in one line each; "" for none."""
    likes = "" if len(line.likes) < 2 else ", ".join(_few([str(w) for w in line.likes]))
    return likes, "; ".join(_few([_trap_words(t.low, t.high, t.better, t.excess, t.reason) for t in line.traps]))


def _trap_words(low: int, high: int, better: int, excess: float, reason: str) -> str:
    where = str(low) if low == high else f"{low}-{high}"
    much = f"{100 * excess:.0f}%" if excess >= 0.005 else "a little"
    return (
        f"{where} ({'up to ' if low != high else ''}{much} {'slower' if reason == 'slower' else 'more'} than {better})"
    )


def _few(words: list[str]) -> list[str]:
    if len(words) <= _MOST_WORDS:
        return words
    return [*words[: _MOST_WORDS - 1], f"and {len(words) - _MOST_WORDS + 1} more"]


def _section(key: str, lines: Sequence[Staircase], modelled: bool) -> str:
    panels = "".join(_panel(line, modelled) for line in lines)
    return f'<h2>{esc(key)}</h2><div class="pair">{panels}</div>'


def _panel(line: Staircase, modelled: bool) -> str:
    side = {"in": "input", "out": "output"}
    other = "" if line.other is None else f", {line.other} {side['out' if line.axis == 'in' else 'in']} channels"
    likes, traps = advice(line)
    said = f"<p><b>Likes</b> {esc(likes)}</p>" if likes else f"<p>{esc(shape(line))}</p>"
    said += f"<p><b>Traps</b> {esc(traps)}</p>" if traps else ""
    drawn = chart(
        _series(line, modelled),
        x_unit=f"{side[line.axis]} channels{other}",
        y_unit="latency in ms",
        y_format=lambda ms: f"{ms:.3g}",
        x_format=lambda c: f"{c:.0f}",
        y_from_zero=True,
    )
    return f'<div class="panel">{drawn}{said}</div>'


def _series(line: Staircase, modelled: bool) -> list[Series]:
    at = dict(zip(line.widths.tolist(), line.ms.tolist(), strict=True))
    made = "modelled" if modelled else "measured"
    trapped = [w for t in line.traps for w in ([t.low] if t.low == t.high else [t.low, t.high])]
    points = [(p, width_of(p, line.axis)) for p in line.points if not held_out(p)]
    found = [
        Series("at every width", "slim", _corners(line)),
        Series(made, "dense", [(w, p.median_ms) for p, w in points], line=False, dots=True,
               tips=[f"{w} channels: {p.median_ms:.4g} ms {made}"
                     + (f", {', '.join(p.flags)}" if p.flags else "") for p, w in points]),
    ]  # fmt: skip
    if len(line.likes) > 1:
        found.append(Series("liked", "good", [(w, at[w]) for w in line.likes], line=False, dots=True,
                            tips=[f"liked: {w} channels, {at[w]:.4g} ms" for w in line.likes]))  # fmt: skip
    if trapped:
        found.append(Series("trap", "bad", [(w, at[w]) for w in trapped], line=False, dots=True,
                            tips=[f"trap: {w} channels, {at[w]:.4g} ms" for w in trapped]))  # fmt: skip
    return found


def _corners(line: Staircase) -> list[tuple[float, float]]:
    """The line without what lies on a straight stretch of it, by Douglas and Peucker's rule."""
    x, y = line.widths.astype(float), line.ms
    tolerance = _NEAR * float(y.max())
    kept, stack = {0, len(x) - 1}, [(0, len(x) - 1)]
    while stack:
        low, high = stack.pop()
        if high - low < 2:
            continue
        straight = y[low] + (y[high] - y[low]) * (x[low : high + 1] - x[low]) / (x[high] - x[low])
        off = np.abs(y[low : high + 1] - straight)
        if off.max() > tolerance:
            at = low + int(off.argmax())
            kept.add(at)
            stack += [(low, at), (at, high)]
    return [(float(x[i]), float(y[i])) for i in sorted(kept)]
