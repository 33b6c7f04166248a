"""Schedules of a scalar over training: pure functions of the progress `a`, clipped to [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from halp_iee.errors import UsageError
from halp_iee.methods.schedule import exponential

Schedule = Callable[[float, float, float], float]
"""(value at 0, value at 1, progress) -> value."""


def _clipped(a: float) -> float:
    return min(max(a, 0.0), 1.0)


def constant(start: float, end: float, a: float) -> float:
    """`start` throughout; `end` is ignored."""
    return start


def cosine(start: float, end: float, a: float) -> float:
    """`end + (start - end) / 2 (1 + cos(pi a))`.

    Source: RigL's f_decay (section 3, eq. 1) with end = 0.
    """
    return end + (start - end) / 2 * (1 + math.cos(math.pi * _clipped(a)))


def cubic(start: float, end: float, a: float) -> float:
    """`end + (start - end) (1 - a)^3`.

    Source: Zhu and Gupta 2017, eq. 1; Chase, eq. 3.
    """
    return end + (start - end) * (1 - _clipped(a)) ** 3


def milestones(values: Sequence[float], at: Sequence[float], a: float) -> float:
    """`values[i]` from the i-th milestone on: a staircase.

    Args:
        values: one more than `at`.
        at: progress in (0, 1] at which the next value takes over, increasing.
        a: progress.

    Raises:
        UsageError: the two do not fit together.

    Source: MEST's elastic mutation, section 3.2.
    """
    if len(values) != len(at) + 1 or list(at) != sorted(at):
        raise UsageError(
            "the milestones cannot be used",
            f"{len(values)} values and milestones {list(at)} do not fit: there must be one value more, in order",
            "give for example values 0.02, 0.01, 0 at 0.56, 0.75",
        )
    return values[sum(a >= edge for edge in at)]


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "cubic": cubic,
    "exponential": exponential,
}
"""Those of two values and the progress, by name."""

__all__ = ["SCHEDULES", "Schedule", "constant", "cosine", "cubic", "exponential", "milestones"]
