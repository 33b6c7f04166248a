"""From a kernel's points to its latency at every width, with the steps of the staircase kept as steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np

from halp_profiler.between import Between, Weights, at_pairs, at_rectangle
from halp_profiler.completion import completed
from halp_profiler.errors import TableError
from halp_profiler.kernel import Kernel
from halp_profiler.steps import Steps
from halp_profiler.table import Point

HELD_OUT = "held_out"
"""Flag of a point that was measured to judge the table, and so takes no part in it."""


class Surface:
    """T(c_in, c_out) of one kernel in ms.

    The measured widths of either axis are *lines*; together they span a grid. Between two lines the latency
    is linear; inside one block of the runtime's layout it depends on that block's own lines only, so a step
    is never smeared over its neighbours: T(b) and T(b + 1) are as far apart as measured. A block without a
    line lies linearly between the tops of the measured blocks around it. Aligned and unaligned input widths
    are interpolated among their own kind (see ``Steps``). Grid cells that were not measured are
    filled by what the complete lines say there, times how much slower the cell's own lines are where they were
    measured, as far as that is more than noise (see ``completed``). At a measured point the surface is that
    measurement. Where a fast path asks for both widths to be aligned, what is on it and what is not are two surfaces,
    of their own points.

    Args:
        kernel: whose points these are.
        points: of that kernel, in any order; held-out ones are passed over.
        steps: the shape of its staircase.

    Raises:
        TableError: no points.
    """

    def __init__(self, kernel: Kernel, points: Iterable[Point], steps: Steps) -> None:
        used = [p for p in points if HELD_OUT not in p.flags]
        if not used:
            raise TableError(f"{kernel.key} has no latency", "the table holds no point of it", "Profile it")
        self.kernel, self.steps = kernel, steps
        self._paths: tuple[Surface, Surface] | None = None
        if steps.align_out > 1 and not kernel.diagonal:
            fast = [p for p in used if self._is_fast(p.c_in, p.c_out)]
            slow = [p for p in used if not self._is_fast(p.c_in, p.c_out)]
            if fast and slow:
                self._paths = Surface(kernel, fast, Steps()), Surface(kernel, slow, Steps())
            else:
                self.steps = Steps()  # of one path alone nothing is known about the other
        self.lines_in = np.unique([p.c_in for p in used])
        self.lines_out = np.array([0]) if kernel.diagonal else np.unique([p.c_out for p in used])
        grid = np.full((len(self.lines_in), len(self.lines_out)), np.nan)
        for p in used:
            column = 0 if kernel.diagonal else np.searchsorted(self.lines_out, p.c_out)
            grid[np.searchsorted(self.lines_in, p.c_in), column] = p.median_ms
        self._between = Between(self.lines_in, self.lines_out, self.steps)
        self.measured = np.isfinite(grid)
        self.grid_ms = grid if self.measured.all() else self._completed(grid)

    def __call__(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray:
        """Latency in ms; ``c_in`` and ``c_out`` broadcast, and an outer product of two axes is quickest.

        Raises:
            TableError: a width outside of what was measured.
        """
        a, b = np.asarray(c_in), np.asarray(c_out)
        self._check("in", a, self.lines_in)
        if self.kernel.diagonal:
            return np.broadcast_to(self._alone[a - self.lines_in[0]], np.broadcast_shapes(a.shape, b.shape))
        self._check("out", b, self.lines_out)
        if self._paths is not None:
            return np.where(self._is_fast(a, b), *(path._near(a, b) for path in self._paths))
        if a.ndim == 2 and b.ndim == 2 and a.shape[1] == 1 and b.shape[0] == 1:
            return self._rectangle(a[:, 0], b[0])
        return self._pairs(a, b)

    @property
    def parts(self) -> tuple[Surface, ...]:
        """The surfaces that it is made of: itself, or those of the fast path and of the others."""
        return self._paths or (self,)

    def _is_fast(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray | bool:
        s = self.steps
        if s.align_out <= 1 or self.kernel.diagonal:
            return False
        return (np.asarray(c_in) % s.align == 0) & (np.asarray(c_out) % s.align_out == 0)

    def _near(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """As a call; beyond what was measured, as the product of the widths grows."""
        a_in = np.clip(a, self.lines_in[0], self.lines_in[-1])
        b_in = np.clip(b, self.lines_out[0], self.lines_out[-1])
        return self(a_in, b_in) * (a / a_in) * (b / b_in)

    def corners(self, c_in: int, c_out: int) -> list[tuple[int, int]]:
        """The measured points that the surface rests on at one pair of widths."""
        if self._paths is not None:
            path = self._paths[0 if self._is_fast(c_in, c_out) else 1]
            at = np.clip((c_in, c_out), (path.lines_in[0], path.lines_out[0]), (path.lines_in[-1], path.lines_out[-1]))
            return path.corners(int(at[0]), int(at[1]))
        found, plain = self._between.rows(np.array([c_in]))
        rows = {int(found.lower[0]), int(found.upper[0])}
        if self.kernel.diagonal:
            return [(c, self.kernel.c_out_of(c)) for c in self.lines_in[sorted(rows)].tolist()]
        beside = self._between.columns(np.array([c_out]), bool(plain[0]))
        columns = {int(beside.lower[0]), int(beside.upper[0])}
        return [
            (int(self.lines_in[i]), int(self.lines_out[j]))
            for i in sorted(rows) for j in sorted(columns) if self.measured[i, j]
        ]  # fmt: skip

    def _check(self, side: str, widths: np.ndarray, lines: np.ndarray) -> None:
        if widths.size and (widths.min() < lines[0] or widths.max() > lines[-1]):
            wrong = widths.min() if widths.min() < lines[0] else widths.max()
            raise TableError(
                f"The latency of {self.kernel.key} with {wrong} channels {side} is not known",
                f"the table holds {lines[0]} to {lines[-1]} channels {side}",
                "Profile the network for which it is needed; a table grows by what is missing",
            )

    def _pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The surface at broadcast pairs of widths."""
        rows, plain = self._between.every_row
        at = a - self.lines_in[0]
        columns = self._between.every_column[plain[at].astype(np.int64), b - self.lines_out[0]]
        return at_pairs(self.grid_ms, rows[at], columns)

    def _rectangle(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The surface over a whole rectangle of widths."""
        rows, plain = self._between.every_row
        at = a - self.lines_in[0]
        return _by_plain(
            self.grid_ms, rows[at], plain[at], lambda p: self._between.every_column[int(p), b - self.lines_out[0]]
        )

    @cached_property
    def _alone(self) -> np.ndarray:
        """A diagonal surface at every width from its first line to its last."""
        return self._between.every_row[0].of(self.grid_ms[:, 0])

    def kinds_in(self) -> list[np.ndarray]:
        """The input's lines (their places), each kind of width apart; see ``Steps``."""
        held = self._between.kind(self.lines_in)
        return [np.flatnonzero(held == k) for k in np.unique(held)]

    def _completed(self, grid: np.ndarray) -> np.ndarray:
        """The grid without gaps; see the class."""
        rows, columns = _core(np.isfinite(grid))
        core = Between(self.lines_in[rows], self.lines_out[columns], self.steps)
        base = _by_plain(
            grid[np.ix_(rows, columns)], *core.rows(self.lines_in), lambda p: core.columns(self.lines_out, p)
        )
        return completed(grid, base, rows, columns)


def _by_plain(grid: np.ndarray, rows: Weights, plain: np.ndarray, columns: Callable[[bool], Weights]) -> np.ndarray:
    """The grid over a rectangle whose rows know blocks on the output's axis or do not."""
    if plain.all() or not plain.any():
        return at_rectangle(grid, rows, columns(bool(plain[:1].any())))
    out = np.empty((len(plain), len(columns(False).lower)))
    for which in (False, True):
        here = np.flatnonzero(plain == which)
        out[here] = at_rectangle(grid, rows[here], columns(which))
    return out


def _core(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns whose crossing was measured completely: the worst line goes until none has a gap."""
    rows, columns = np.ones(known.shape[0], bool), np.ones(known.shape[1], bool)
    while True:
        part = known[np.ix_(rows, columns)]
        if part.all():
            return np.flatnonzero(rows), np.flatnonzero(columns)
        by_row, by_column = part.mean(1), part.mean(0)
        if (by_row.min(), -len(by_row)) <= (by_column.min(), -len(by_column)) and len(by_row) > 1:
            rows[np.flatnonzero(rows)[by_row.argmin()]] = False
        elif len(by_column) > 1:
            columns[np.flatnonzero(columns)[by_column.argmin()]] = False
        else:
            rows[np.flatnonzero(rows)[by_row.argmin()]] = False
