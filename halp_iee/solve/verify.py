"""Checks an answer from the raw inputs; shares no code with any solver."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from halp_iee.errors import HalpError
from halp_iee.solve.answer import Answer


class CertificateError(HalpError):
    """A solver's answer does not hold what it says: a fault in the solver."""


def verify(
    answer: Answer,
    cost: Any,
    importance: Mapping[str, Any],
    *,
    active: Mapping[str, Any] | None = None,
    standing: Mapping[str, Any] | None = None,
    within_budget: bool = True,
) -> None:
    """Check one answer.

    Every group keeps at least one unit, each once, or nothing where all groups of a branch may go and do; active
    and standing units are respected; widths, latency, value, gap and bound are what the units kept say; the budget
    holds.

    Args:
        importance: the scores of the groups that were decided.
        within_budget: False for the published one shot, which may miss the budget.

    Raises:
        CertificateError: naming what does not hold.
    """
    value = 0.0
    branches = [set(branch) for branch in getattr(cost, "branches", ())]
    gone = {name for branch in branches if not any(len(answer.keep.get(g, ())) for g in branch) for name in branch}
    for name, units in answer.keep.items():
        kept = {int(unit) for unit in units}
        _require(
            len(kept) == len(units) and (len(kept) > 0 or name in gone), f"group {name!r} keeps no unit or one twice"
        )
        _require(list(units) == sorted(kept), f"the units of group {name!r} are not in order")
        _require(answer.widths.get(name) == len(kept), f"group {name!r} keeps another number than its width")
        if active is not None and name in active:
            outside = kept - {int(unit) for unit in active[name]}
            _require(not outside, f"group {name!r} keeps units that are not active: {sorted(outside)[:3]}")
        if standing is not None and name in standing:
            lost = {int(unit) for unit in standing[name]} - kept
            _require(not lost, f"group {name!r} loses standing units: {sorted(lost)[:3]}")
    for name, scores in importance.items():
        _require(name in answer.keep, f"group {name!r} has scores but no answer")
        array = np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores, dtype=np.float64)
        value += math.fsum(array[answer.keep[name]])
    latency_ms = float(cost.predict(answer.widths))
    _require(
        math.isclose(latency_ms, answer.latency_ms, rel_tol=1e-9, abs_tol=1e-12),
        f"the latency is {latency_ms} ms, not {answer.latency_ms}",
    )
    _require(
        math.isclose(value, answer.value, rel_tol=1e-9, abs_tol=1e-12),
        f"the importance is {value}, not {answer.value}",
    )
    if within_budget:
        _require(
            latency_ms <= answer.budget_ms * (1.0 + 1e-9),
            f"{latency_ms} ms is over the budget of {answer.budget_ms} ms",
        )
    if within_budget:
        _require(answer.bound >= value * (1.0 - 1e-9), f"the importance {value} exceeds the bound {answer.bound}")
    _require(0.0 <= answer.gap <= 1.0 and math.isfinite(answer.bound), f"the gap {answer.gap} is not a share")


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise CertificateError(
            "the solver's answer failed its check", fault, "This is a fault in halp-iee: please report it"
        )
