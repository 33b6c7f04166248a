"""Schedules of a scalar over the update steps: pure functions of the progress `a` in [0, 1]."""

from __future__ import annotations

import math


def exponential(start: float, end: float, a: float) -> float:
    """`exp(a log end + (1 - a) log start)`: a straight line in the logarithm.

    Args:
        start: value at a = 0, above 0.
        end: value at a = 1, above 0.
        a: progress; clipped to [0, 1].

    Source: HALP's latency schedule, which IEE's update budget follows (appendix, section 3).
    """
    a = min(max(a, 0.0), 1.0)
    return math.exp(a * math.log(end) + (1.0 - a) * math.log(start))
