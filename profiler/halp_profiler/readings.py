"""What a sweep has measured so far: points, on disk as soon as they are known, and read again where one is doubted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from halp_profiler import table as tables
from halp_profiler.backends.base import Backend, Request
from halp_profiler.kernel import Kernel
from halp_profiler.surface import HELD_OUT, Surface
from halp_profiler.table import Point, PointKey

MOST_READINGS = 3
"""Of a point that is doubted: each in a network of other kernels."""

_ALIKE = 0.05  # readings that differ by less say the same

Progress = Callable[[int, int, float], None]
"""Called with (points done, points planned so far, seconds left)."""


@dataclass
class Readings:
    """The one mutable thing of a sweep: the points so far, and their file."""

    backend: Backend
    path: Path
    points: dict[PointKey, Point]
    progress: Progress | None
    budget_s: float | None
    start: float = field(default_factory=time.monotonic)
    measured: int = 0  # points that were not there
    taken: int = 0  # readings
    again: dict[PointKey, list[Point]] = field(default_factory=dict)  # all readings of what was read more than once

    def __post_init__(self) -> None:
        self._of: dict[Kernel, dict[PointKey, Point]] = {}
        self._note(self.points.values())

    def _note(self, points: Iterable[Point]) -> None:
        for p in points:
            self._of.setdefault(p.kernel, {})[p.key] = p

    def left_s(self) -> float:
        return float("inf") if self.budget_s is None else self.budget_s - (time.monotonic() - self.start)

    def measure(self, requests: Sequence[Request], *, must: bool, flag: str = "", until_left_s: float = 0.0) -> bool:
        """Measures what is not there yet; False when the time ran out first (never if ``must``)."""
        todo = [q for q in dict.fromkeys(requests) if not self._has(q, flag)]
        together = self.backend.together
        for i in range(0, len(todo), together):
            if not must and self.left_s() <= until_left_s:
                return False
            new = self.backend.measure(todo[i : i + together])
            if flag:
                new = [flagged(p, flag) for p in new]
            self.keep(new)
            self.report(len(todo) - i - len(new))
        return True

    def keep(self, new: Sequence[Point]) -> None:
        """On disk first, then in memory."""
        tables.append(self.path, new)
        self.measured += sum(p.key not in self.points for p in new)
        self.taken += len(new)
        self.points.update((p.key, p) for p in new)
        self._note(new)

    def read_again(self, keys: Iterable[PointKey], until_left_s: float = 0.0) -> bool:
        """Reads points once more, each at most ``MOST_READINGS`` times in all; False when the time ran out first.

        The median of a point's readings stands: what else is in the same network, and where the runtime puts its
        tensors, makes some readings of a point slower than its others by 10 to 50%, and some quicker.
        """
        todo = [
            key for key in dict.fromkeys(keys) if len(self.again.get(key, ())) < MOST_READINGS and key in self.points
        ]
        while todo:
            if self.left_s() <= until_left_s:
                return False
            some, todo = todo[: self.backend.together], todo[self.backend.together :]
            new = []
            for key, point in zip(some, self.backend.measure([Request(*key) for key in some]), strict=True):
                before = self.points[key]
                judge = HELD_OUT in before.flags
                held = self.again.setdefault(key, [replace(before, flags=_without(before.flags))])
                held.append(point)
                middle = _middle(held)
                new.append(flagged(middle, HELD_OUT) if judge else middle)
                if len(held) == 2 and abs(held[0].median_ms - point.median_ms) > _ALIKE * middle.median_ms:
                    todo.append(key)  # one of the two is wrong
            self.keep(new)
            self.report(len(todo))
        return True

    def _has(self, request: Request, flag: str) -> bool:
        point = self.points.get((request.kernel, request.c_in, request.c_out))
        return point is not None and (HELD_OUT not in point.flags or flag == HELD_OUT)

    def report(self, planned: int) -> None:
        if self.progress:
            pace = (time.monotonic() - self.start) / max(1, self.taken)
            eta = planned * pace if self.budget_s is None else min(planned * pace, max(0.0, self.left_s()))
            self.progress(self.measured, self.measured + planned, eta)

    def of(self, kernel: Kernel) -> list[Point]:
        return list(self._of.get(kernel, {}).values())

    def surface(self, kernel: Kernel, without: Collection[PointKey] = ()) -> Surface:
        """What the points say of a kernel, but for some of them."""
        return Surface(kernel, (p for p in self.of(kernel) if p.key not in without), self.backend.steps(kernel))


def _middle(readings: Sequence[Point]) -> Point:
    """The median of a point's readings, those without a flag if there are any; of two, their mean."""
    steady = sorted([p for p in readings if not p.flags] or readings, key=lambda p: p.median_ms)
    low, high = steady[(len(steady) - 1) // 2], steady[len(steady) // 2]
    if low is high:
        return low
    ms, p25, p75 = (float(np.mean(pair)) for pair in ((low.median_ms, high.median_ms), (low.p25_ms, high.p25_ms),
                                                      (low.p75_ms, high.p75_ms)))  # fmt: skip
    return replace(low, median_ms=ms, p25_ms=p25, p75_ms=p75, samples=low.samples + high.samples)


def _without(flags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f for f in flags if f != HELD_OUT)


def flagged(point: Point, flag: str) -> Point:
    return replace(point, flags=(*point.flags, flag))
