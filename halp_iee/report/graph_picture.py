"""The channel graph as one self-contained HTML page: layers downwards, every group a band beside them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from halp_iee.errors import ArtifactError
from halp_iee.report.text import esc

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph, ChannelGroup, Op

ROW, LANE, NAME, WHAT, STARTS = 20, 16, 282, 218, 420
"""Height of a layer, width of a lane; widths of a layer's name, of what it is, and of the groups that start there."""

MOST_LANES_FIRST = 9
"""With more lanes than this the text comes before them: it must be seen without scrolling."""

MADE_BY = frozenset({"conv", "linear", "embedding", "recurrent"})
JOINED_BY = frozenset({"add", "mul", "cat"})

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --ink: #1c2024; --soft: #60686f; --line: #e3e5e6;
  --l: 46%; --t: 36%; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e9ecee; --soft: #9ba5ad; --line: #31373c; --l: 62%; --t: 70%; }
}
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5; font: 15px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1400px; margin: 0 auto; padding: 32px 20px 60px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
p { color: var(--soft); max-width: 76ch; margin: 0 0 14px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; padding: 10px; }
svg text { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: var(--ink); }
svg text.soft { fill: var(--soft); }
svg tspan.start { fill: hsl(var(--h) 62% var(--t)); font-weight: 600; } svg tspan.off { fill: var(--soft); }
.row { stroke: var(--line); stroke-width: 1; }
.band { fill: hsl(var(--h) 62% var(--l)); fill-opacity: .34; }
.dot { fill: hsl(var(--h) 62% var(--l)); stroke: hsl(var(--h) 62% var(--l)); stroke-width: 2; }
.reads { fill: var(--paper); }
.frozen .band { fill: url(#hatch); fill-opacity: 1; stroke: var(--soft); stroke-opacity: .5; }
.frozen .dot { fill: var(--soft); stroke: var(--soft); } .frozen .dot.reads { fill: var(--paper); }
.hatch { stroke: var(--soft); stroke-opacity: .55; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; color: var(--soft); font-weight: 500; }
td, th { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.n { text-align: right; white-space: nowrap; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px;
  background: hsl(var(--h) 62% var(--l)); }
.swatch.off { background: repeating-linear-gradient(45deg, var(--soft) 0 1px, transparent 1px 4px);
  outline: 1px solid var(--soft); }
.dim [data-g] { opacity: .12; } .dim [data-g].on { opacity: 1; } .dim tr[data-g] { opacity: .45; }
"""

_SCRIPT = """
const all = [...document.querySelectorAll('[data-g]')];
function show(g) {
  document.body.classList.toggle('dim', g !== null);
  for (const one of all) one.classList.toggle('on', one.dataset.g === g);
}
for (const one of all) {
  one.addEventListener('mouseenter', () => show(one.dataset.g));
  one.addEventListener('mouseleave', () => show(null));
}
"""


@dataclass(frozen=True)
class Band:
    """A group's place in the picture: its lane, its first and last row, and what each row does with it."""

    group: ChannelGroup
    number: int
    lane: int
    first: int
    last: int
    makes: frozenset[int]
    reads: frozenset[int]


def rows_of(graph: ChannelGraph) -> list[Op]:
    """The operations that are shown: those with weights that make channels, and those that join them."""
    return [op for op in graph.ops if op.kind in MADE_BY or (op.kind in JOINED_BY and op.c_out.groups)]


def bands_of(graph: ChannelGraph, ops: Sequence[Op]) -> list[Band]:
    """Give every group that is seen a lane; lanes are used again once a group has ended."""
    makes: dict[str, set[int]] = {}
    reads: dict[str, set[int]] = {}
    for row, op in enumerate(ops):
        for name in op.c_out.groups:
            makes.setdefault(name, set()).add(row)
        for name in op.c_in.groups:
            reads.setdefault(name, set()).add(row)
    seen = [
        (min(rows), max(rows), number, group)
        for number, group in enumerate(graph.groups)
        if (rows := makes.get(group.name, set()) | reads.get(group.name, set()))
    ]
    ends: list[int] = []
    bands = []
    for first, last, number, group in sorted(seen, key=lambda one: one[:3]):
        lane = next((lane for lane, end in enumerate(ends) if end < first), len(ends))
        ends[lane : lane + 1] = [last]
        made, read = makes.get(group.name, set()), reads.get(group.name, set())
        bands.append(Band(group, number, lane, first, last, frozenset(made), frozenset(read - made)))
    return bands


def _hue(number: int) -> int:
    return int(number * 137.508) % 360  # the golden angle: neighbours are far apart


def _about(group: ChannelGroup) -> str:
    why = "" if group.prunable else f"\nfrozen: {group.reason}"
    return esc(f"{group.name}: {group.size} units in {len(group.layers)} layers{why}")


def _layer(op: Op) -> tuple[str, str]:
    kernel = op.attrs.get("kernel_size")
    size = "x".join(str(one) for one in kernel) + " " if isinstance(kernel, tuple) else ""
    groups = op.attrs.get("groups", 1)
    more = f" in {groups} groups" if isinstance(groups, int) and groups > 1 else ""
    return op.module or "(the network)", f"{op.kind} {size}{op.c_in.full}\u2192{op.c_out.full}{more}"


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else "\u2026" + text[-(most - 1) :]


def svg(graph: ChannelGraph) -> str:
    """The picture alone."""
    ops = rows_of(graph)
    bands = bands_of(graph, ops)
    lanes = max((band.lane for band in bands), default=-1) + 1
    before = lanes <= MOST_LANES_FIRST
    left, text = (4, 4 + lanes * LANE + 8) if before else (NAME + WHAT + STARTS, 0)
    width, height = lanes * LANE + NAME + WHAT + STARTS + 24, len(ops) * ROW + 10
    parts = [
        f'<svg role="img" aria-label="Layers and channel groups" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"><defs>'
        '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="hatch" x1="0" y1="0" x2="0" y2="5" stroke-width="2"/></pattern></defs>'
    ]
    for row, op in enumerate(ops):
        y = row * ROW + ROW // 2 + 5
        name, what = _layer(op)
        soft = "" if op.kind in MADE_BY else ' class="soft"'
        parts.append(
            f"<g><title>{esc(f'{name}: {what}')}</title>"
            f'<line class="row" x1="0" x2="{width}" y1="{y + 5}" y2="{y + 5}"/>'
            f'<text{soft} x="{text}" y="{y}">{esc(_clip(name, 37))}</text>'
            f'<text class="soft" x="{text + NAME}" y="{y}">{esc(what)}</text></g>'
        )
    for band in bands:
        x = left + band.lane * LANE
        top, tall = band.first * ROW + 6, max((band.last - band.first) * ROW, 0) + ROW - 6
        frozen = "" if band.group.prunable else ' class="frozen"'
        dots = "".join(
            f'<circle class="dot{"" if row in band.makes else " reads"}" cx="{x + 6}" cy="{row * ROW + 13}" r="3.5"/>'
            for row in sorted(band.makes | band.reads)
        )
        parts.append(
            f'<g{frozen} data-g="{band.number}" style="--h:{_hue(band.number)}"><title>{_about(band.group)}</title>'
            f'<rect class="band" x="{x}" y="{top}" width="12" height="{tall}" rx="5"/>{dots}</g>'
        )
    parts += [
        _starting([band for band in bands if band.first == row], text + NAME + WHAT, row * ROW + 15)
        for row in range(len(ops))
    ]
    return "".join([*parts, "</svg>"])


def _starting(bands: Sequence[Band], x: int, y: int) -> str:
    """What begins in a row, in the colour of its band: how many units, and why they stay if they do."""
    told, length = [], 0
    for band in bands:
        why = "" if band.group.prunable else f", frozen: {band.group.reason}"
        words = _head(f"{band.group.size} units{why}", 56 - length)
        length += len(words) + 3
        told.append(
            f'<tspan class="start{"" if band.group.prunable else " off"}" style="--h:{_hue(band.number)}">'
            f"{esc(words)}</tspan>"
        )
        if length > 44:
            break
    rest = f"<tspan> and {len(bands) - len(told)} more</tspan>" if len(told) < len(bands) else ""
    return f'<text x="{x}" y="{y}">{"<tspan>; </tspan>".join(told)}{rest}</text>' if told else ""


def _head(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _table(groups: Sequence[ChannelGroup]) -> str:
    rows = []
    for number, group in enumerate(groups):
        off = "" if group.prunable else " off"
        shown = ", ".join(group.layers[:6]) + (f" and {len(group.layers) - 6} more" if len(group.layers) > 6 else "")
        rows.append(
            f'<tr data-g="{number}"><td><span class="swatch{off}" style="--h:{_hue(number)}"></span>{esc(group.name)}'
            f'</td><td class="n">{group.size}</td><td>{esc(group.reason or "can be pruned")}</td>'
            f"<td>{esc(shown)}</td></tr>"
        )
    head = '<tr><th>group</th><th class="n">units</th><th>state</th><th>layers that carry it</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def render(graph: ChannelGraph, title: str) -> str:
    """The page as text; it loads nothing, and every name in it is escaped."""
    groups = graph.groups
    free = [group for group in groups if group.prunable]
    told = (
        f"{len(free)} of {len(groups)} groups can be pruned, {sum(g.size for g in free)} of "
        f"{sum(g.size for g in groups)} units."
    )
    without = "".join(f"<li>{esc(name)} in {esc(where)}</li>" for name, where in graph.unknown.items())
    unknown = f"<h2>Operations without a rule</h2><ul>{without}</ul>" if without else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}: channel groups</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{esc(title)}</h1><p>{esc(told)} Layers are listed in the order in which they run. Each band is one "
        "group: channels that are kept or removed together. A full dot is a layer that makes the group's channels, "
        "an open one a layer that only reads them. Hatched bands stay whole; why is said where they start.</p>"
        f'<div class="scroll">{svg(graph)}</div><h2>Groups</h2>{_table(groups)}{unknown}</main>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def write(graph: ChannelGraph, path: str | os.PathLike[str], title: str = "network") -> Path:
    """Write the page, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(render(graph, title), encoding="utf-8", errors="replace")
        os.replace(temporary, target)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write the picture {target}",
            (error.strerror or str(error)).lower(),
            "Choose a file in a folder that exists and that you may write to",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target
