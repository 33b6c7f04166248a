"""One kernel's latency over its channels, and what it says about them: which widths a device likes, which are traps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from halp_profiler.errors import UsageError
from halp_profiler.records import Point
from halp_profiler.surface import HELD_OUT, Surface

AXES = ("in", "out")
_STEP = 0.03  # a channel more that costs this share more is a step ...
_STEEPER = 4.0  # ... if it also costs this many times what a channel costs on average
_SLOWER = 0.02  # a width is a trap where a larger one is faster by more than this share


@dataclass(frozen=True)
class Trap:
    """Widths that cost more than they should.

    Attributes:
        low, high: the widths, both included.
        better: a width that serves better: larger and faster, or the last before the step.
        excess: how much slower than ``better`` the worst of them is, as a share.
        reason: ``slower`` than a larger width, or just above a ``step``.
    """

    low: int
    high: int
    better: int
    excess: float
    reason: str


@dataclass(frozen=True)
class Staircase:
    """Latency along one axis of a kernel.

    Attributes:
        axis: ``in`` or ``out``.
        other: the channels of the other axis, which stay the same; None for a kernel with one axis.
        widths: all widths from the least to the largest measured one.
        ms: the surface at each, in ms.
        points: what was measured on this line.
        likes: the last width before each step, the widths that serve better than a trap, and the largest.
        traps: by width.
    """

    axis: str
    other: int | None
    widths: np.ndarray
    ms: np.ndarray
    points: tuple[Point, ...]
    likes: tuple[int, ...]
    traps: tuple[Trap, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "axis": self.axis, "other": self.other, "likes": list(self.likes), "traps": [vars(t) for t in self.traps],
            "points": [p.to_json() for p in self.points],
        }  # fmt: skip


def staircase(surface: Surface, points: Iterable[Point], axis: str, other: int | None = None) -> Staircase:
    """The line of a kernel's surface along ``axis``.

    Args:
        surface: of the kernel.
        points: of the kernel, held-out ones included.
        axis: ``in`` or ``out``; a kernel whose output follows from its input has only ``in``.
        other: channels of the other axis; None: the most that were measured.

    Raises:
        UsageError: the kernel has no such axis, or nothing was measured there.
    """
    kernel, diagonal = surface.kernel, surface.kernel.diagonal
    if axis not in AXES or (diagonal and axis == "out"):
        why = "its output channels follow from the input's" if diagonal else f"the axis is {axis!r}"
        raise UsageError(f"{kernel.key} has no such staircase", why, "Ask for the axis in")
    lines, others = surface.lines_in, surface.lines_out
    if axis == "out":
        lines, others = others, lines
    fixed = None if diagonal else int(others[-1]) if other is None else other
    if fixed is not None and not others[0] <= fixed <= others[-1]:
        raise UsageError(
            f"{kernel.key} was not measured there", f"the other axis holds {others[0]} to {others[-1]}, not {fixed}",
            "Choose a width in between",
        )  # fmt: skip
    quantum = kernel.quantum if axis == "in" else 1
    widths = np.arange(-(-int(lines[0]) // quantum) * quantum, int(lines[-1]) + 1, quantum)
    ms = surface(widths, fixed or 0) if axis == "in" else surface(np.full_like(widths, fixed or 0), widths)
    here = tuple(
        sorted(
            (p for p in points if fixed is None or (p.c_out if axis == "in" else p.c_in) == fixed),
            key=lambda p: p.c_in if axis == "in" else p.c_out,
        )
    )
    ms = np.asarray(ms, float)
    edges = _edges(widths, ms)
    traps = tuple(_traps(widths, ms, edges))
    trapped = {w for t in traps for w in range(t.low, t.high + 1)}
    likes = {*(int(widths[i]) for i in edges), *(t.better for t in traps), int(widths[-1])} - trapped
    return Staircase(axis, fixed, widths, ms, here, tuple(sorted(likes)), traps)


def width_of(point: Point, axis: str) -> int:
    """The point's channels on the axis."""
    return point.c_in if axis == "in" else point.c_out


def held_out(point: Point) -> bool:
    """Whether the point judges the surface instead of making it."""
    return HELD_OUT in point.flags


def _edges(widths: np.ndarray, ms: np.ndarray) -> list[int]:
    """Positions after which one channel more costs a step more."""
    if len(widths) < 3:
        return []
    rise = np.diff(ms)
    slope = max(0.0, float(ms[-1] - ms[0])) / (len(ms) - 1)
    return [int(i) for i in np.flatnonzero((rise > _STEP * ms[:-1]) & (rise > _STEEPER * slope))]


def _traps(widths: np.ndarray, ms: np.ndarray, edges: list[int]) -> Iterable[Trap]:
    best_ms = np.minimum.accumulate(ms[::-1])[::-1]  # the quickest of this width and all larger ones
    slower = ms * (1 - _SLOWER) > best_ms
    found: list[Trap] = []
    i = 0
    while i < len(widths):
        if not slower[i]:
            i += 1
            continue
        j = i
        while j + 1 < len(widths) and slower[j + 1]:
            j += 1
        better = int(j + 1 + np.argmin(ms[j + 1 :])) if j + 1 < len(widths) else j
        # The nearest larger width that is as fast as the fastest, so that no more channels are advised than needed.
        close = np.flatnonzero(ms[j + 1 : better + 1] <= ms[better] * (1 + _SLOWER))
        better = j + 1 + int(close[0]) if len(close) else better
        excess = float(ms[i : j + 1].max() / ms[better] - 1)
        found.append(Trap(int(widths[i]), int(widths[j]), int(widths[better]), excess, "slower"))
        i = j + 1
    for i in edges:
        if not slower[i + 1]:
            excess = float(ms[i + 1] / ms[i] - 1)
            found.append(Trap(int(widths[i + 1]), int(widths[i + 1]), int(widths[i]), excess, "step"))
    return sorted(found, key=lambda t: t.low)
