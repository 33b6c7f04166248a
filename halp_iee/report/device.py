"""The parts of the page about the device and what was made for it: staircases, training cost, exports."""

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
            title = f"{row.get('name', '?')}, {text.big(row.get('c_in'), '?')} channels in"
            panels += f'<div class="panel"><h3>{esc(title)}</h3>{drawn}</div>'
    word = "modelled" if mapping(data.get("result")).get("source") == "modelled" else "from the latency table"
    return section(
        "The device's staircase",
        f'<div class="pair">{panels}</div>' if panels else "",
        f"Latency of the most expensive layers over their width, {word}. Fewer channels help where a step is passed.",
    )


def training_cost(data: Data) -> str:
    """What the training took in FLOPs and in seconds, dense beside slim, and stage by stage where that is known."""
    result = mapping(data.get("result"))
    ratio = number(result.get("train_flops_ratio"))
    slim, dense = number(result.get("train_seconds")), number(result.get("train_seconds_dense"))
    bars = ""
    if ratio is not None:
        top = max(1.0, ratio)
        bars += plots.bar_row(
            "FLOPs, of the dense training's", 1 / top, ratio / top, f"×1 → <b>×{text.figures(ratio)}</b>",
            tip=f"the slim network's training took {ratio:.1%} of the FLOPs of the dense one's",
        )  # fmt: skip
    if slim is not None and dense is not None and max(slim, dense) > 0:
        top = max(slim, dense)
        bars += plots.bar_row(
            "Seconds, as they passed", dense / top, slim / top, f"{text.seconds(dense)} → <b>{text.seconds(slim)}</b>",
            tip=f"dense {text.seconds(dense)}, slim {text.seconds(slim)}",
        )  # fmt: skip
    body = f'<div class="panel"><div class="rows">{bars}</div>{_stages(result)}</div>' if bars else ""
    return section("What the training cost", body, "The dense network's training is the measure.")


def _stages(result: Data) -> str:
    """Steps, FLOPs and seconds of every stage."""
    lines = ""
    for name, entry in mapping(result.get("train_cost")).items():
        stage = mapping(entry)
        counts = (text.big(stage.get(key), "-") for key in ("steps", "flops"))
        cells = (*counts, text.seconds(stage.get("seconds"), "-"))
        if any(cell != "-" for cell in cells):
            lines += f"<tr><td>{esc(name)}</td>{''.join(f'<td>{esc(cell)}</td>' for cell in cells)}</tr>"
    if not lines:
        return ""
    head = "<thead><tr><th>stage</th><th>steps</th><th>FLOPs</th><th>time</th></tr></thead>"
    return f'<div class="scroll after"><table>{head}<tbody>{lines}</tbody></table></div>'


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
