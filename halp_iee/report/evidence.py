"""The rest of the page: layers, widths, calibration, the structure over time, learning curves, environment.

Each part takes what the run recorded and returns HTML, "" when there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halp_iee.report import plots, text
from halp_iee.report.plots import Series
from halp_iee.report.text import esc, facts, mapping, number, rows, section

Data = Mapping[str, Any]

_MOST_ROWS = 400
_SMALL = 0.005
"""Layers that take less than this share of the latency are folded away ..."""
_WORTH_FOLDING = 8
"""... where there are so many of them."""


def layers(data: Data) -> str:
    """Where the time goes: the budget as a bar of layers, then every layer, before and after."""
    known = [
        (str(row.get("name", "?")), number(row.get("dense_ms")) or 0.0, number(row.get("slim_ms")) or 0.0)
        for row in rows(data.get("layers"))
    ]
    known = [one for one in known if one[1] or one[2]]  # reorderings that never happen have a row in the model
    if not known:
        return ""
    result, fixed = mapping(data.get("result")), number(data.get("fixed_ms")) or 0.0
    parts = [*known, ("fixed cost of a call", fixed, fixed)] if fixed > 0 else known
    # A calibrated table may give a layer less than nothing; a bar cannot show that, its number can.
    total = max(sum(max(0.0, dense) for _, dense, _ in parts), sum(max(0.0, slim) for *_, slim in parts))
    if total <= 0:
        return ""
    target = number(result.get("target_ms"))
    bar = plots.stacks(
        [
            ("dense", "dense", [(f"{name}: {text.ms(dense)}", dense) for name, dense, _ in parts]),
            ("slim", "slim", [(f"{name}: {text.ms(slim)}", slim) for name, _, slim in parts]),
        ],
        total,
        target,
    )
    longest = max(max(dense, slim) for _, dense, slim in parts) or 1.0
    shown = [one for one in parts if max(one[1:]) >= _SMALL * total]
    if len(parts) - len(shown) < _WORTH_FOLDING:
        shown = parts
    small = [one for one in parts if one not in shown] if shown is not parts else []
    word = "modelled from the datasheet" if result.get("source") == "modelled" else "predicted from the latency table"
    mark = [("budget", "prune", True)] if target is not None and target <= total else []
    colours = plots.legend([("dense", "dense", False), ("slim", "slim", False), *mark])
    body = _panel("", f"{colours}{bar}") + _panel("", _layer_rows(shown, longest) + _folded(small, longest))
    said = f"Latency of every fused layer before and after, {word}."
    if any(name.endswith(": layout") for name, *_ in known):
        said += (
            " A row called layout is the reordering of a tensor in memory, which some widths ask for and others do not."
        )
    return section("Where the time goes", body, said)


def _layer_rows(parts: Sequence[tuple[str, float, float]], longest: float) -> str:
    lines = "".join(
        plots.bar_row(
            name, dense / longest, slim / longest, f"{text.ms(dense)} → <b>{text.ms(slim)}</b>",
            tip=f"{name}: {text.ms(dense)} dense, {text.ms(slim)} slim ({text.times(slim, dense)})",
        )
        for name, dense, slim in parts[:_MOST_ROWS]
    )  # fmt: skip
    return f'<div class="rows">{lines}</div>{_cut(len(parts))}'


def _folded(parts: Sequence[tuple[str, float, float]], longest: float) -> str:
    """Rows that hardly matter, behind one line with their sum; on paper they are all there."""
    if not parts:
        return ""
    dense, slim = sum(one[1] for one in parts), sum(one[2] for one in parts)
    head = f"{len(parts)} more, each under {_SMALL:.1%} of the whole: {text.ms(dense)} → {text.ms(slim)}"
    return f"<details><summary>{esc(head)}</summary>{_layer_rows(parts, longest)}</details>"


def widths(data: Data) -> str:
    """How many units of every group are left, and why some were never in question."""
    known = []
    for row in rows(data.get("groups")):
        size = number(row.get("size"))
        if size is not None and size >= 1:
            kept = number(row.get("kept"))
            known.append((row, int(size), int(size if kept is None else kept)))
    if not known:
        return ""
    widest = max(size for _, size, _ in known)
    lines = ""
    for row, size, kept in known[:_MOST_ROWS]:
        name, frozen = str(row.get("name", "?")), row.get("prunable") is False
        reason = f"not prunable: {row.get('reason') or 'no reason given'}" if frozen else f"{kept / size:.0%} kept"
        lines += plots.bar_row(
            name, size / widest, kept / widest, "whole" if frozen else f"{size} → <b>{kept}</b>",
            tip=f"{name}: {kept} of {size} units, {reason}", frozen=frozen, marks=_steps(row, widest),
        )  # fmt: skip
    reasons = sorted(
        {str(row.get("reason")) for row, _, _ in known if row.get("prunable") is False and row.get("reason")}
    )
    why = "".join(f"<li>{esc(reason)}</li>" for reason in reasons[:12])
    explained = f'<p class="note after">Hatched groups cannot be pruned:</p><ul class="note">{why}</ul>' if why else ""
    return section(
        "Widths of the groups",
        _panel("", f'<div class="rows">{lines}</div>{_cut(len(known))}{explained}'),
        "Units of every channel group before and after. A group is what must be removed together across layers. "
        "A tick is a step of the device: one unit more costs much more than a unit costs on average.",
    )


def _steps(row: Data, widest: int) -> list[float]:
    """Where the device has steps, as shares of the widest group."""
    steps = row.get("steps")
    found = [number(step) for step in steps] if isinstance(steps, (list, tuple)) else []
    return [step / widest for step in found if step is not None and 0 < step <= widest]


def _cut(count: int) -> str:
    return "" if count <= _MOST_ROWS else f'<p class="note">and {count - _MOST_ROWS} more</p>'


def calibration(data: Data) -> str:
    """Predicted against measured for the networks that were timed whole."""
    table = mapping(data.get("table"))
    pairs: list[tuple[float, float, float | None]] = []
    for row in rows(data.get("calibration")) or rows(table.get("points")):
        predicted, measured = number(row.get("predicted_ms")), number(row.get("measured_ms"))
        if predicted is not None and measured is not None:
            pairs.append((predicted, measured, number(row.get("before_ms"))))
    result = mapping(data.get("result"))
    final = number(result.get("predicted_ms")), number(result.get("measured_ms"))
    about = _table_facts(table)
    if not pairs:
        return section("The latency table", about)
    top = max(max(p, m) for p, m, _ in pairs)

    def tips(points: Sequence[tuple[float, float]]) -> list[str]:
        return [f"predicted {text.ms(p)}, measured {text.ms(m)} ({_error(p, m)})" for p, m in points]

    after = [(p, m) for p, m, _ in pairs]
    before = [(b, m) for _, m, b in pairs if b is not None]
    series = [
        Series("predicted = measured", "dense", [(0.0, 0.0), (top, top)], dashed=True),
        Series("before calibration", "prune", before, tips(before), line=False, dots=True),
        Series("calibrated", "slim", after, tips(after), line=False, dots=True),
    ]
    if final[0] is not None and final[1] is not None:
        point = [(final[0], final[1])]
        series.append(Series("the slim network", "grow", point, tips(point), line=False, dots=True))
    drawn = plots.chart(series, x_unit="predicted, ms", y_unit="measured, ms", same_scale=True, tall=True)
    worst = max((abs(p - m) / m for p, m in after if m > 0), default=None)
    said = f" The calibrated prediction is at most {worst:.1%} off on them." if worst is not None else ""
    note = f"{len(pairs)} networks of different widths, built and timed whole.{said}"
    return section("Predicted against measured", _panel("", drawn) + about, note)


def _error(predicted: float, measured: float) -> str:
    return f"{predicted / measured - 1:+.1%}" if measured > 0 else "-"


def _table_facts(table: Data) -> str:
    points = table.get("points")
    lines = [
        ("Device", table.get("device")),
        ("Source", table.get("source")),
        ("Points", len(points) if isinstance(points, (list, tuple)) else points),
        ("Error on held-out points", text.percent(table.get("held_out_error"), 1)),
        *((str(key).replace("_", " ").capitalize(), value) for key, value in table.items()
          if key not in ("device", "source", "points", "held_out_error")),
    ]  # fmt: skip
    return facts(lines) if table else ""


def prune_and_grow(data: Data) -> str:
    """The structure over time: its latency at every step, how much it still changes, what of the grown survives."""
    known = [row for row in rows(data.get("events")) if row.get("kind") in ("start", "prune", "grow", "settle")]
    steps = [(row, _at(row, index)) for index, row in enumerate(known)]
    latency = [(at, ms) for row, at in steps if (ms := number(row.get("latency_ms"))) is not None]
    if not latency:
        return ""
    target = number(mapping(data.get("result")).get("target_ms"))
    word = "modelled" if mapping(data.get("result")).get("source") == "modelled" else "predicted"
    result = [Series("latency of the active structure", "slim", latency, dots=len(latency) <= 60)]
    if target is not None:
        ends = [(latency[0][0], target), (latency[-1][0], target)]
        result.append(Series("target", "prune", ends, dashed=True))
    panels = _panel(
        f"Latency, {word}, after every prune and grow",
        plots.chart(result, x_unit="training step", y_format=lambda v: f"{v:g} ms"),
    )
    changes = [
        Series("IoU of the active structure after prune", "prune", _over(steps, "prune", "iou")),
        Series("IoU after grow", "grow", _over(steps, "grow", "iou")),
    ]
    survival = [Series("share of grown units that survive the next prune", "grow", _over(steps, "prune", "survival"))]
    for title, series in (
        ("How much of the structure stays", changes),
        ("How many of the grown units stay", survival),
    ):
        drawn = plots.chart(series, x_unit="training step", y_format=lambda v: f"{100 * v:g}%", y_from_zero=True)
        panels += _panel(title, drawn)
    importance = [
        Series("importance kept after prune", "prune", _over(steps, "prune", "value")),
        Series("importance after grow", "grow", _over(steps, "grow", "value")),
    ]
    panels += _panel("Importance of the active structure", plots.chart(importance, x_unit="training step"))
    return section(
        "Prune and grow",
        f'<div class="pair">{panels}</div>',
        "Each cycle prunes units of little importance, lets the others recover, explores what lies idle, and "
        "grows the best of it back.",
    )


def _over(steps: Sequence[tuple[Data, float]], kind: str, key: str) -> list[tuple[float, float]]:
    return [(at, found) for row, at in steps if row.get("kind") == kind and (found := number(row.get(key))) is not None]


def _at(row: Data, index: int) -> float:
    found = number(row.get("step"))
    return float(index) if found is None else found


def learning(data: Data) -> str:
    """Loss and accuracy over the epochs, the dense reference beside the slim network."""
    epochs = [row for row in rows(data.get("events")) if row.get("kind") == "epoch"]
    panels = ""
    for title, keys, form in (
        ("Top-1 on the test set", ("test_top1", "top1"), lambda share: f"{100 * share:g}%"),
        ("Training loss", ("loss",), lambda loss: f"{loss:g}"),
    ):
        series = []
        for phase in dict.fromkeys(str(row.get("phase", "slim")) for row in epochs):
            points = []
            for row in epochs:
                x = number(row.get("epoch"))
                y = next((found for key in keys if (found := number(row.get(key))) is not None), None)
                if str(row.get("phase", "slim")) == phase and x is not None and y is not None:
                    points.append((x, y))
            series.append(Series(phase, "dense" if phase == "dense" else "slim", points))
        panels += _panel(title, plots.chart(series, x_unit="epoch", y_format=form))
    return section("Training", f'<div class="pair">{panels}</div>' if panels else "")


def _panel(title: str, drawn: str) -> str:
    named = f"<h3>{esc(title)}</h3>" if title else ""
    return f'<div class="panel">{named}{drawn}</div>' if drawn else ""


def environment(data: Data) -> str:
    result = mapping(data.get("result"))
    installed = dict(mapping(data.get("environment")))
    if "runtime" in installed and "runtime_version" in installed:
        installed[str(installed.pop("runtime"))] = installed.pop("runtime_version")
    known = [(str(key).replace("_", " "), value) for key, value in installed.items()]
    known += [
        (label, result.get(key))
        for label, key in (
            ("Solver", "solver"), ("Runtime", "runtime"), ("Threads", "threads"), ("Batch", "batch"), ("Seed", "seed"),
            ("Artifact", "artifact"), ("ONNX file", "onnx"),
        )
    ]  # fmt: skip
    gap = number(result.get("gap"))
    known.append(("Solver's gap to the best possible, at most", None if gap is None else f"{gap:.3%}"))
    return section("Environment", facts(known))


def reproduce(data: Data) -> str:
    command = data.get("reproduce")
    if not command:
        return ""
    return section("How to reproduce", f"<pre>{esc(command)}</pre>")
