"""What the training cost, stage by stage: FLOPs as counted and by the paper's formula, beside seconds really spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halp_iee.report import plots, text
from halp_iee.report.text import esc, facts, mapping, number, section

_NAMES = {
    "estimate": "Importance Estimation", "improve": "Accuracy Improvement", "explore": "Reactivate & Explore",
    "descend": "on the way down", "train": "after the last update", "teacher": "the teacher's answers",
    "dense": "the dense network that it starts from",
}  # fmt: skip
_SECONDS = {
    "estimate": "importance",
    "improve": "accuracy",
    "explore": "explore",
    "descend": "importance",
    "train": "train",
}


def cost(data: Mapping[str, Any]) -> str:
    """Dense beside slim in FLOPs and in seconds, then the stages where the run kept a bill of them."""
    result = mapping(data.get("result"))
    bars = _bars(result)
    note = "The dense network's training is the measure."
    if mapping(mapping(result.get("train_cost")).get("stages")):
        note += " Time includes judging, solving and resizing; the method's own part of it is named below."
    panel = f'<div class="panel"><div class="rows">{bars}</div></div>' if bars else ""
    return section("What the training cost", panel + _stages(result), note)


def _bars(result: Mapping[str, Any]) -> str:
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
    return bars


def _stages(result: Mapping[str, Any]) -> str:
    """A table of the stages, and what the method itself took; "" where the run kept no bill."""
    bill = mapping(result.get("train_cost"))
    stages = mapping(bill.get("stages"))
    if not stages:
        return ""
    total = sum(number(mapping(one).get("flops")) or 0.0 for one in stages.values()) or 1.0
    spent = mapping(bill.get("seconds"))
    lines = []
    for name, one in stages.items():
        flops, steps = number(mapping(one).get("flops")) or 0.0, number(mapping(one).get("steps"))
        seconds = spent.get(_SECONDS.get(str(name), ""))
        cells = (_NAMES.get(str(name), str(name)), "-" if steps is None else f"{steps:g}", text.percent(flops / total),
                 text.seconds(seconds, "-"))  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{title}</th>" for title in ("stage", "steps", "share of the FLOPs", "time"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    ratio, formula = number(result.get("train_flops_ratio")), number(bill.get("flops_ratio_by_formula"))
    known = [
        ("Training FLOPs over dense, as run", None if ratio is None else f"{ratio:.3f}"),
        ("The same by the paper's formula, at the final size", None if formula is None else f"{formula:.3f}"),
        *((f"The method's own part, {on}", text.seconds(s)) for on, s in mapping(bill.get("overhead_seconds")).items()),
    ]  # fmt: skip
    return f'<div class="scroll after">{table}</div>{facts([line for line in known if line[1] is not None])}'
