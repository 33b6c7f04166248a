"""The parts of the page about the device and what was made for it: staircases, exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halp_iee.report import plots, text
from halp_iee.report.plots import Series
from halp_iee.report.text import esc, mapping, number, rows, section

Data = Mapping[str, Any]


def staircases(data: Data) -> str:
    """Latency of a few layers over their channels, with the dense and the chosen width on it."""
    panels = ""
    for row in rows(data.get("staircases")):
        counts, ms = row.get("widths"), row.get("ms")
        if not isinstance(counts, (list, tuple)) or not isinstance(ms, (list, tuple)):
            continue
        pairs = [(number(a), number(b)) for a, b in zip(counts, ms, strict=False)]
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        known = dict(points)
        series = [Series("latency", "dense", points)]
        for word, color in (("dense", "prune"), ("chosen", "slim")):
            at = number(row.get(word))
            if at is not None and at in known:
                tip = f"{word}: {at:.0f} channels, {text.ms(known[at])}"
                series.append(Series(word, color, [(at, known[at])], [tip], line=False, dots=True))
        drawn = plots.chart(series, x_unit="output channels", y_format=text.ms, y_from_zero=True)
        if drawn:
            channels = "channel" if row.get("c_in") == 1 else "channels"
            title = f"{row.get('name', '?')}, {text.big(row.get('c_in'), '?')} {channels} in"
            panels += f'<div class="panel"><h3>{esc(title)}</h3>{drawn}</div>'
    word = "modelled" if mapping(data.get("result")).get("source") == "modelled" else "from the latency table"
    return section(
        "The device's staircase",
        f'<div class="pair">{panels}</div>' if panels else "",
        f"Latency of the most expensive layers over their width, {word}. Fewer channels help where a step is passed.",
    )


def exports(data: Data) -> str:
    """Every file that was made of the network, as it was proved and timed."""
    lines = ""
    for row in rows(data.get("exports")):
        name = str(row.get("path", "?")).rsplit("/", 1)[-1]
        fp32 = number(row.get("latency_fp32_ms"))
        latency = text.ms(row.get("latency_ms"), "-") + (
            f" <small>{esc(text.ms(fp32))} in fp32</small>" if fp32 is not None else ""
        )
        error = number(row.get("max_error"))
        cells = (
            esc(f"{row.get('format', '?')} {row.get('precision', '')}"), esc(row.get("runtime", "?")),
            esc(f"{text.big(row.get('bytes'), '?')}B"), esc(text.percent(row.get("top1"), 2, "-")),
            latency, "-" if error is None else f"{error:.1e}",
        )  # fmt: skip
        lines += f"<tr><td>{esc(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    if not lines:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("file", "kind", "checked in", "size", "top-1", "latency", "error"))
    table = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    return section(
        "Files to deploy", f'<div class="scroll">{table}</div>',
        "Each computes what the slim network computes, on real images where the run has data; the error is relative to "
        "the output's scale.",
    )  # fmt: skip
