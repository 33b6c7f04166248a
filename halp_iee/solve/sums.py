"""Two parts of a sum eliminated at once: min over a + b = s of F(a) + G(b), for every s.

Beside every combination of the variables that touch either part this is a min-plus convolution. No table holds a,
b and s together: the sum is built up one cell of the smaller part at a time, in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halp_iee.solve.network import Cells, Relation
from halp_iee.solve.order import Scope


def meet(cells: Cells, relation: Relation, v: int) -> tuple[np.ndarray, np.ndarray]:
    """For the cells of the two variables other than ``v``: the first cell of ``v`` that some pair of their
    entries leaves open, and how many (they are neighbours)."""
    ends = {
        u: cells.channels(u, per)
        for u, per in ((relation.a, relation.per_a), (relation.b, relation.per_b), (relation.total, 1))
    }
    x, y = (u for u in (relation.a, relation.b, relation.total) if u != v)
    if v == relation.total:
        low = ends[x][0][:, None] + ends[y][0][None, :]
        high = ends[x][1][:, None] + ends[y][1][None, :]
    else:  # v = total - other; y is the total
        low = ends[y][0][None, :] - ends[x][1][:, None]
        high = ends[y][1][None, :] - ends[x][0][:, None]
    first = np.searchsorted(ends[v][1], low, side="left")
    stop = np.searchsorted(ends[v][0], high, side="right")
    return first, np.maximum(stop - first, 0)


_Run = tuple[int, slice | np.ndarray, slice | np.ndarray, bool]
"""A cell of the smaller part, cells of the larger one, the cells of the sum that they reach, one each; and whether
the second are all different."""


@dataclass(frozen=True, eq=False)
class Addition:
    """How the joint tables of two parts become one of their sum.

    Attributes:
        scope: the sum, then the variables of either table besides its part.
        shape: cells of each.
        spread: for the first and the second table, the shape that aligns it with its part and ``scope[1:]``.
        swapped: whether the second part is the larger.
        runs: for every cell of the smaller part, which cells of the larger one give which of the sum; no cell of
            the sum twice in a run.
        whence: cells of the sum that each (larger, smaller) pair reaches: the first, and how many.
    """

    scope: Scope
    shape: tuple[int, ...]
    spread: tuple[tuple[int, ...], tuple[int, ...]]
    swapped: bool
    runs: tuple[_Run, ...]
    whence: tuple[np.ndarray, np.ndarray]

    @classmethod
    def plan(
        cls, cells: Cells, relation: Relation, one: int, two: int, of_one: Scope, of_two: Scope, context: Sequence[int]
    ) -> Addition:
        """For the parts ``one`` and ``two`` of a relation, whose tables have the scopes given (the part first)."""
        sizes = cells.sizes
        swapped = sizes[two] > sizes[one]
        large, small = (two, one) if swapped else (one, two)
        first, count = meet(cells, relation, large)
        reach, many = meet(cells, relation, relation.total)
        if relation.a != large:
            reach, many = reach.T, many.T
        runs: list[_Run] = []
        most = count.max(axis=1, initial=0)
        for j in range(sizes[small]):
            for offset in range(int(most[j])):
                at = np.flatnonzero(count[j] > offset)
                source = first[j, at] + offset
                runs.append((j, _slice(source), _slice(at), bool((np.diff(source) > 0).all())))
        spread = tuple(
            (sizes[scope[0]], *(sizes[u] if u in scope else 1 for u in context)) for scope in (of_one, of_two)
        )
        shape = (sizes[relation.total], *(sizes[u] for u in context))
        return cls((relation.total, *context), shape, (spread[0], spread[1]), swapped, tuple(runs), (reach, many))

    def _tables(self, one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The larger part's table and the smaller one's, flat but for the part."""
        flat = []
        for table, shape in zip((one, two), self.spread, strict=True):
            full = np.broadcast_to(table.reshape(shape), (shape[0], *self.shape[1:]))
            flat.append(np.ascontiguousarray(full).reshape(shape[0], -1))
        return (flat[1], flat[0]) if self.swapped else (flat[0], flat[1])

    def add(self, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """The least of ``one`` + ``two`` for every cell of the sum and the rest of ``scope``."""
        large, small = self._tables(one, two)
        result = np.full((self.shape[0], large.shape[1]), np.inf)
        room = np.empty_like(result)
        for j, source, target, _ in self.runs:
            block = large[source]
            found = np.add(block, small[j], out=room[: len(block)])
            if isinstance(target, slice):
                np.minimum(result[target], found, out=result[target])
            else:
                result[target] = np.minimum(result[target], found)
        return result.reshape(self.shape)

    def wholes(self, one: np.ndarray, two: np.ndarray, beyond: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least of ``one`` + ``two`` + ``beyond`` at every entry of either table."""
        large, small = self._tables(one, two)
        outside = beyond.reshape(self.shape[0], -1)
        whole_large, whole_small = np.full_like(large, np.inf), np.full_like(small, np.inf)
        for j, source, target, different in self.runs:
            found = outside[target] + small[j]
            whole_small[j] = np.minimum(whole_small[j], (outside[target] + large[source]).min(axis=0))
            if isinstance(source, slice):
                np.minimum(whole_large[source], found, out=whole_large[source])
            elif different:
                whole_large[source] = np.minimum(whole_large[source], found)
            else:
                np.minimum.at(whole_large, source, found)
        whole_large += large
        whole_small += small
        ends = (whole_small, whole_large) if self.swapped else (whole_large, whole_small)
        wholes = []
        for whole, shape, table in zip(ends, self.spread, (one, two), strict=True):
            full = whole.reshape(shape[0], *self.shape[1:])
            away = tuple(axis for axis in range(1, len(shape)) if shape[axis] == 1 < self.shape[axis])
            wholes.append(full.min(axis=away).reshape(table.shape) if away else full.reshape(table.shape))
        return wholes[0], wholes[1]

    def parts(self, one: np.ndarray, two: np.ndarray, total: int) -> tuple[int, int]:
        """Cells of the two parts that reach the least at the cell ``total``; the tables are columns now."""
        large, small = (two, one) if self.swapped else (one, two)
        first, count = self.whence
        both = large[:, None] + small[None, :]
        both = np.where((first <= total) & (total < first + count), both, np.inf)
        i, j = np.unravel_index(int(np.argmin(both)), both.shape)
        return (int(j), int(i)) if self.swapped else (int(i), int(j))


def _slice(index: np.ndarray) -> slice | np.ndarray:
    """The same as a slice, where the indices follow each other."""
    if len(index) and bool((np.diff(index) == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index
