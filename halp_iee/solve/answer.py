"""What a solver gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Answer:
    """The units to keep, and the proof of how good they are.

    Attributes:
        keep: group name -> sorted indices of the units that are kept (int64), every group that
            the cost knows, those that were not decided included.
        widths: group name -> number of units kept.
        latency_ms: what the cost model predicts for ``widths`` (``cost.predict``), never more than ``budget_ms``
            (except for ``halp`` with ``as_published=True``).
        value: importance kept: the sum of the scores of the kept units of the decided groups. Units
            that stand anyway count with their scores, as a constant.
        bound: no choice of units within the budget and the limits has a larger value.
        gap: ``(bound - value) / bound``, 0 when the bound is 0.
        seconds: time the solver took.
        solver: which one answered.
        budget_ms: what was asked for.
    """

    keep: dict[str, np.ndarray]
    widths: dict[str, int]
    latency_ms: float
    value: float
    bound: float
    gap: float
    seconds: float
    solver: str
    budget_ms: float


def relative_gap(value: float, bound: float) -> float:
    """How far ``value`` may be from the best possible, as a share of ``bound``."""
    return max(0.0, (bound - value) / bound) if bound > 0.0 else 0.0
