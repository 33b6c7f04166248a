"""What the training cost, stage by stage: FLOPs as counted and by the paper's formula, beside seconds really spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halp_iee.report import text
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
    """A table of the stages, and what the method itself took; "" where the run kept no bill."""
    bill = mapping(mapping(data.get("result")).get("train_cost"))
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
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    ratio, formula = (
        number(mapping(data.get("result")).get("train_flops_ratio")),
        number(bill.get("flops_ratio_by_formula")),
    )
    known = [
        ("Training FLOPs over dense, as run", None if ratio is None else f"{ratio:.3f}"),
        ("The same by the paper's formula, at the final size", None if formula is None else f"{formula:.3f}"),
        *((f"The method's own part, {on}", text.seconds(s)) for on, s in mapping(bill.get("overhead_seconds")).items()),
    ]  # fmt: skip
    return section(
        "What the training cost", f"{body}{facts([line for line in known if line[1] is not None])}",
        "Time includes judging, solving and resizing; the method's own part of it is named below.",
    )  # fmt: skip
