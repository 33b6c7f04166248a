"""Moves from one choice of widths to a better one, under the exact latency.

Every move changes one width (or two that share no layer), and the latency of all widths that a group
could take instead is read off the tables in one go, so a sweep over all groups costs little.
"""

from __future__ import annotations

import numpy as np

from halp_iee.solve.network import Network

_SWAP_PASSES = 3
_SWEEPS = 20


class Search:
    """Exact row-wise evaluation of one network; holds no point, only tables."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.count = len(network.problem.groups)
        self.allowance_ms = network.problem.allowance_ms
        self.grids = [variable.grid for variable in network.variables]
        self.values = [variable.values for variable in network.variables[: self.count]]
        self._positions = []
        for grid in self.grids:
            lookup = np.full(int(grid[-1] - grid[0]) + 1, -1, dtype=np.int64)
            lookup[grid - grid[0]] = np.arange(len(grid))
            self._positions.append(lookup)
        # All lookups in one array, so that every sum is found in one step.
        self._offsets = np.concatenate([[0], np.cumsum([len(p) for p in self._positions])[:-1]])
        self._lookup = np.concatenate(self._positions)
        self._first = np.array([grid[0] for grid in self.grids])
        self._members = np.zeros((len(self.grids), self.count), dtype=np.int64)
        for v, variable in enumerate(network.variables):
            for g, per in variable.members:
                self._members[v, g] = per
        self._per = [dict(variable.members) for variable in network.variables]
        self._touching: list[list[tuple[int, ...]]] = [[] for _ in range(self.count)]
        self.neighbours: list[set[int]] = [set() for _ in range(self.count)]
        for scope in network.latencies:
            groups = {g for v in scope for g in self._per[v]}
            for g in groups:
                self._touching[g].append(scope)
                self.neighbours[g] |= groups

    def all_variables(self, point: np.ndarray) -> np.ndarray:
        """Grid indices of every variable (sums too) for grid indices of the groups."""
        channels = self._members @ self.widths(point)
        return self._lookup[self._offsets + channels - self._first]

    def latency_ms(self, point: np.ndarray) -> float:
        full = self.all_variables(point)
        return self.network.constant_ms + sum(
            float(table[tuple(full[v] for v in scope)]) for scope, table in self.network.latencies.items()
        )

    def value(self, point: np.ndarray) -> float:
        return float(sum(values[i] for values, i in zip(self.values, point, strict=True)))

    def widths(self, point: np.ndarray) -> np.ndarray:
        return np.array([grid[i] for grid, i in zip(self.grids, point, strict=False)], dtype=np.int64)

    def row(self, full: np.ndarray, g: int) -> np.ndarray:
        """Change of latency in ms for every width of group ``g``, the other groups as in ``full``."""
        grid = self.grids[g]
        total = np.zeros(len(grid))
        for scope in self._touching[g]:
            index = []
            for v in scope:
                if v == g:
                    index.append(slice(None) if len(scope) == 1 else np.arange(len(grid)))
                elif g in self._per[v]:
                    shift = self._per[v][g] * (grid - grid[full[g]])
                    channels = self.grids[v][full[v]] + shift
                    index.append(self._positions[v][channels - self.grids[v][0]])
                else:
                    index.append(full[v])
            total += self.network.latencies[scope][tuple(index)]
        return total - total[full[g]]

    def polish(self, point: np.ndarray, price: float) -> np.ndarray:
        """Coordinate ascent on value - price * latency; price inf: least latency."""
        point = point.copy()
        full = self.all_variables(point)
        stale = set(range(self.count))
        for _ in range(_SWEEPS):
            if not stale:
                break
            for g in sorted(stale):
                stale.discard(g)
                row = self.row(full, g)
                gain = -row if np.isinf(price) else self.values[g] - price * row
                best = int(np.argmax(gain))
                if gain[best] > gain[point[g]] + 1e-12 * abs(gain[point[g]]):
                    point[g] = best
                    full = self.all_variables(point)
                    stale |= self.neighbours[g] - {g}
        return point

    def improve(self, point: np.ndarray) -> tuple[np.ndarray, float] | None:
        """A feasible point near ``point`` and its value, or None when none was found."""
        climb = _Climb(self, point)
        if not climb.repair():
            return None
        climb.fill()
        for _ in range(_SWAP_PASSES):
            if not climb.swap():
                break
            climb.fill()
        return climb.point, self.value(climb.point)


class _Climb:
    """One climb: the point, its latency, and each group's row, kept up to date."""

    def __init__(self, search: Search, point: np.ndarray) -> None:
        self.search = search
        self.point = point.copy()
        self._refresh(set(range(search.count)))

    def _refresh(self, stale: set[int]) -> None:
        if not hasattr(self, "rows"):
            self.rows: dict[int, np.ndarray] = {}
            self.gains: dict[int, np.ndarray] = {}
        self.full = self.search.all_variables(self.point)
        self.latency_ms = self.search.latency_ms(self.point)
        for g in stale:
            self.rows[g] = self.search.row(self.full, g)
            self.gains[g] = self.search.values[g] - self.search.values[g][self.point[g]]

    def _move(self, g: int, index: int) -> None:
        self.point[g] = index
        self._refresh(self.search.neighbours[g] | {g})

    @property
    def slack_ms(self) -> float:
        return self.search.allowance_ms - self.latency_ms

    def repair(self) -> bool:
        """Give up importance, the cheapest a millisecond first, until the budget holds."""
        while self.slack_ms < 0.0:
            best: tuple[float, float, int, int] | None = None
            for g, row in self.rows.items():
                saving = np.flatnonzero(row < 0.0)
                if not len(saving):
                    continue
                loss = -self.gains[g][saving]
                enough = -row[saving] >= -self.slack_ms
                # Savings beyond what is missing are worth nothing.
                rate = loss / np.minimum(-row[saving], -self.slack_ms)
                pick = int(np.argmin(rate))
                key = (float(rate[pick]), float(not enough[pick]), g, int(saving[pick]))
                best = key if best is None or key < best else best
            if best is None:
                return False
            before = self.latency_ms
            self._move(best[2], best[3])
            if self.latency_ms >= before:
                return False
        return True

    def fill(self) -> None:
        """Take what still fits, the most importance a millisecond first."""
        while True:
            best: tuple[float, int, int] | None = None
            for g, row in self.rows.items():
                fits = np.flatnonzero((self.gains[g] > 0.0) & (row <= self.slack_ms))
                if not len(fits):
                    continue
                rate = self.gains[g][fits] / np.maximum(row[fits], 1e-9 * self.search.allowance_ms)
                pick = int(np.argmax(rate))
                key = (float(rate[pick]), -g, int(fits[pick]))
                best = key if best is None or key > best else best
            if best is None:
                return
            self._move(-best[1], best[2])
            if self.slack_ms < 0.0:  # rounding only
                self.repair()
                return

    def swap(self) -> bool:
        """Change two groups that share no layer so that importance rises and the budget holds."""
        improved = False
        fronts = {g: self._front(g) for g in self.rows}
        for g in range(self.search.count):
            for h in range(g + 1, self.search.count):
                if h in self.search.neighbours[g]:
                    continue
                first, second = fronts[g], fronts[h]
                room = self.slack_ms - first[0]
                reach = np.searchsorted(second[0], room, side="right") - 1
                gain = np.where(reach >= 0, first[1] + second[1][np.maximum(reach, 0)], -np.inf)
                pick = int(np.argmax(gain))
                if gain[pick] <= 1e-12 * max(1e-300, abs(first[1][pick])):
                    continue
                before = self.point.copy(), self.latency_ms
                value = self.search.value(self.point)
                self._move(g, int(first[2][pick]))
                self._move(h, int(second[2][reach[pick]]))
                if self.slack_ms < 0.0 or self.search.value(self.point) <= value:
                    self.point = before[0]
                    self._refresh(self.search.neighbours[g] | self.search.neighbours[h] | {g, h})
                    continue
                improved = True
                for changed in self.search.neighbours[g] | self.search.neighbours[h] | {g, h}:
                    fronts[changed] = self._front(changed)
        return improved

    def _front(self, g: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(latency change rising, gain rising, width index) of the moves that no other beats on both."""
        order = np.lexsort((-self.gains[g], self.rows[g]))
        gain = self.gains[g][order]
        best = np.maximum.accumulate(gain)
        first = np.flatnonzero(np.diff(best, prepend=-np.inf) > 0.0)
        return self.rows[g][order][first], gain[first], order[first]
