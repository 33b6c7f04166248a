"""From a kernel's points to its latency at every width, with the steps of the staircase kept as steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from halp_profiler.completion import completed
from halp_profiler.errors import TableError
from halp_profiler.kernel import Kernel
from halp_profiler.steps import Steps
from halp_profiler.table import Point

HELD_OUT = "held_out"
"""Flag of a point that was measured to judge the table, and so takes no part in it."""

_Weights = tuple[np.ndarray, np.ndarray, np.ndarray]  # lower line, upper line, share of the upper one


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
            alone = self._pairs(self.grid_ms, a, np.zeros((), int))
            return np.broadcast_to(alone, np.broadcast_shapes(a.shape, b.shape))
        self._check("out", b, self.lines_out)
        if self._paths is not None:
            return np.where(self._is_fast(a, b), *(path._near(a, b) for path in self._paths))
        if a.ndim == 2 and b.ndim == 2 and a.shape[1] == 1 and b.shape[0] == 1:
            return self._outer(self.grid_ms, a[:, 0], b[0], self.lines_in, self.lines_out)
        return self._pairs(self.grid_ms, a, b)

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
        ((_, block_in, block_out, mine),) = self._classes(np.array([c_in]), self.lines_in)
        rows = {int(mine[w[0]]) for w in _weights(self.lines_in[mine], np.array([c_in]), block_in)[:2]}
        if self.kernel.diagonal:
            return [(c, self.kernel.c_out_of(c)) for c in self.lines_in[sorted(rows)].tolist()]
        columns = {int(w[0]) for w in _weights(self.lines_out, np.array([c_out]), block_out)[:2]}
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

    def _pairs(self, grid: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The surface at broadcast pairs of widths."""
        shape = np.broadcast_shapes(a.shape, b.shape)
        a, b = np.broadcast_to(a, shape).ravel(), np.broadcast_to(b, shape).ravel()
        out = np.empty(a.shape)
        for rows, block_in, block_out, mine in self._classes(a, self.lines_in):
            i0, i1, u = _weights(self.lines_in[mine], a[rows], block_in)
            i0, i1 = mine[i0], mine[i1]
            j0, j1, v = _weights(self.lines_out, b[rows], block_out)
            low = grid[i0, j0] * (1 - v) + grid[i0, j1] * v
            high = grid[i1, j0] * (1 - v) + grid[i1, j1] * v
            out[rows] = low * (1 - u) + high * u
        return out.reshape(shape)

    def _outer(
        self, grid: np.ndarray, a: np.ndarray, b: np.ndarray, lines_in: np.ndarray, lines_out: np.ndarray
    ) -> np.ndarray:
        """The surface over a whole rectangle of widths: two small matrix products."""
        out = np.empty((len(a), len(b)))
        for rows, block_in, block_out, mine in self._classes(a, lines_in):
            left = _matrix(_weights(lines_in[mine], a[rows], block_in), len(mine))
            right = _matrix(_weights(lines_out, b, block_out), len(lines_out))
            out[rows] = left @ (grid[mine] @ right.T)
        return out

    def kinds_in(self) -> list[np.ndarray]:
        """The input's lines (their places), each kind of width apart; see ``Steps``."""
        held = self._kind(self.lines_in)
        return [np.flatnonzero(held == k) for k in np.unique(held)]

    def _kind(self, c: np.ndarray) -> np.ndarray:
        """0: free, 1: aligned, 2: not aligned."""
        s = self.steps
        return np.where(c < s.free_below, 0, np.where((s.align <= 1) | (c % max(1, s.align) == 0), 1, 2))

    def _classes(self, a: np.ndarray, lines: np.ndarray) -> list[tuple[np.ndarray, int, int, np.ndarray]]:
        """(the queries, block in, block out, the lines) of each kind of input width that is asked for."""
        s = self.steps
        asked, held = self._kind(a), self._kind(lines)
        out = []
        for k, (block_in, block_out) in enumerate(((1, s.block_out), (s.block_in, s.block_out), (1, 1))):
            rows = np.flatnonzero(asked == k)
            if len(rows):
                mine = np.flatnonzero(held == k)
                out.append((rows, block_in, block_out, mine if len(mine) else np.arange(len(lines))))
        return out

    def _completed(self, grid: np.ndarray) -> np.ndarray:
        """The grid without gaps; see the class."""
        rows, columns = _core(np.isfinite(grid))
        core = Surface.__new__(Surface)
        core.kernel, core.steps, core._paths = self.kernel, self.steps, None
        core.lines_in, core.lines_out = self.lines_in[rows], self.lines_out[columns]
        base = core._outer(grid[np.ix_(rows, columns)], self.lines_in, self.lines_out, core.lines_in, core.lines_out)
        return completed(grid, base, rows, columns)


def _weights(lines: np.ndarray, asked: np.ndarray, block: int) -> _Weights:
    """For every asked width the two lines that it lies between, and the share of the upper one."""
    last = len(lines) - 1
    upper = np.minimum(np.searchsorted(lines, asked), last)
    lower = np.where(lines[upper] > asked, np.maximum(upper - 1, 0), upper)
    if block > 1:
        asked_block, line_block = -(-asked // block), -(-lines // block)
        blocks, first = np.unique(line_block, return_index=True)
        top = np.append(first[1:], len(lines)) - 1
        at = np.minimum(np.searchsorted(blocks, asked_block), len(blocks) - 1)
        own = blocks[at] == asked_block
        upper = np.where(own, np.clip(upper, first[at], top[at]), top[at])
        before = np.where(blocks[at] > asked_block, np.maximum(at - 1, 0), at)
        lower = np.where(own, np.clip(lower, first[at], top[at]), top[before])
        # Inside a block positions are channels; between blocks they are the blocks' tops.
        position = np.where(own, asked, asked_block * block).astype(float)
        start = np.where(own, lines[lower], line_block[lower] * block)
        end = np.where(own, lines[upper], line_block[upper] * block)
    else:
        position, start, end = asked.astype(float), lines[lower], lines[upper]
    span = end - start
    share = np.clip(np.where(span > 0, (position - start) / np.maximum(span, 1), 0.0), 0.0, 1.0)
    return lower, upper, share


def _matrix(weights: _Weights, lines: int) -> np.ndarray:
    lower, upper, share = weights
    out = np.zeros((len(lower), lines))
    rows = np.arange(len(lower))
    out[rows, lower] = 1 - share
    out[rows, upper] += share
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
