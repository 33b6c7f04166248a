"""Moves from one choice of widths to a better one, under the exact latency.

Every move changes one width (or two that share no layer), and the latency of all widths that a group
could take instead is read off the tables in one go, so a sweep over all groups costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from halp_iee.solve.network import Network

_SWAP_PASSES = 3
_SWEEPS = 20
_ROUNDING = 1e-9
"""Share of a latency that sums in different orders may differ by, with room to spare."""
Offers = dict[int, tuple[float, int] | None]
"""Group -> (importance a ms, index of the width) of its best move, or None."""


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
        return self.latency_at(self.all_variables(point))

    def latency_at(self, full: np.ndarray) -> float:
        """The same for grid indices of every variable."""
        return self.network.constant_ms + sum(
            float(table[tuple(full[v] for v in scope)]) for scope, table in self.network.latencies.items()
        )

    def maybe_within(self, widths: np.ndarray) -> np.ndarray:
        """Which of many admissible widths, shape (many, groups), the budget holds, but for rounding."""
        full = self._lookup[self._offsets + widths @ self._members.T - self._first]
        total = np.full(len(widths), self.network.constant_ms)
        for scope, table in self.network.latencies.items():
            total += table[tuple(full[:, v] for v in scope)]
        return total <= self.allowance_ms * (1.0 + _ROUNDING)

    def value(self, point: np.ndarray) -> float:
        return float(sum(values[i] for values, i in zip(self.values, point, strict=True)))

    def indices(self, widths: Sequence[int] | np.ndarray) -> np.ndarray:
        """Grid indices of admissible widths, one a group."""
        return np.array([np.searchsorted(grid, k) for grid, k in zip(self.grids, widths, strict=False)])

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
    """One climb: the point, its latency, and each group's row.

    A move changes the rows of all groups that share a layer with it. They are marked stale and read again only
    when they would be used, since an old row is a good guess of which group to look at next.
    """

    def __init__(self, search: Search, point: np.ndarray) -> None:
        self.search = search
        self.rows: dict[int, np.ndarray] = {}
        self.gains: dict[int, np.ndarray] = {}
        self.stale: set[int] = set()
        self._set(point)
        for g in range(search.count):
            self._read(g)

    def _set(self, point: np.ndarray) -> None:
        self.point = point
        self.full = self.search.all_variables(point)
        self.latency_ms = self.search.latency_at(self.full)

    def _read(self, g: int) -> None:
        self.stale.discard(g)
        self.rows[g] = self.search.row(self.full, g)
        self.gains[g] = self.search.values[g] - self.search.values[g][self.point[g]]

    def _moved(self, *moves: tuple[int, int]) -> np.ndarray:
        point = self.point.copy()
        for g, index in moves:
            point[g] = index
        return point

    def _move(self, *moves: tuple[int, int]) -> None:
        self._set(self._moved(*moves))
        for g, _ in moves:
            self.stale |= self.search.neighbours[g]
        for g, _ in moves:
            self._read(g)

    @property
    def slack_ms(self) -> float:
        return self.search.allowance_ms - self.latency_ms

    def _best(self, rate: Callable[[int], tuple[float, int] | None], offers: Offers) -> tuple[int, int] | None:
        """The (group, index) with the highest rate, read afresh; None when no group offers a move.

        As the budget is used up, rates fall, so an old one is not too low, and only the best is looked at again.
        """
        fresh: set[int] = set()
        for g in self.rows:
            if g not in offers:
                offers[g] = rate(g)
                fresh.add(g)
        while True:
            open_ = [(offer[0], -g) for g, offer in offers.items() if offer is not None]
            if not open_:
                old = [g for g in offers if g not in fresh or g in self.stale]
                if not old:
                    return None
            else:
                best = -max(open_)[1]
                offer = offers[best]
                if offer is not None and best in fresh and best not in self.stale:
                    return best, offer[1]
                old = [best]
            for g in old:
                if g in self.stale:
                    self._read(g)
                offers[g] = rate(g)
                fresh.add(g)

    def repair(self) -> bool:
        """Give up importance, the cheapest a millisecond first, until the budget holds."""

        def rate(g: int) -> tuple[float, int] | None:
            saving = np.flatnonzero(self.rows[g] < 0.0)
            if not len(saving):
                return None
            # Savings beyond what is missing are worth nothing.
            loss = -self.gains[g][saving] / np.minimum(-self.rows[g][saving], -self.slack_ms)
            pick = int(np.argmin(loss))
            return -float(loss[pick]), int(saving[pick])

        offers: Offers = {}
        while self.slack_ms < 0.0:
            before, move = self.latency_ms, self._best(rate, offers)
            if move is None:
                return False
            self._move(move)
            if self.latency_ms >= before:
                return False
        return True

    def fill(self) -> None:
        """Take what still fits, the most importance a millisecond first."""

        def rate(g: int) -> tuple[float, int] | None:
            fits = np.flatnonzero((self.gains[g] > 0.0) & (self.rows[g] <= self.slack_ms))
            if not len(fits):
                return None
            rates = self.gains[g][fits] / np.maximum(self.rows[g][fits], 1e-9 * self.search.allowance_ms)
            pick = int(np.argmax(rates))
            return float(rates[pick]), int(fits[pick])

        offers: Offers = {}
        while (move := self._best(rate, offers)) is not None:
            if self.search.latency_ms(self._moved(move)) > self.search.allowance_ms:
                return  # rounding only
            self._move(move)

    def swap(self) -> bool:
        """Change two groups that share no layer so that importance rises and the budget holds."""
        improved = False
        for g in sorted(self.stale):
            self._read(g)
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
                moves = ((g, int(first[2][pick])), (h, int(second[2][reach[pick]])))
                after = self._moved(*moves)
                if self.search.latency_ms(after) > self.search.allowance_ms:
                    continue
                if self.search.value(after) <= self.search.value(self.point):
                    continue
                self._move(*moves)
                improved = True
                # The others' fronts are now guesses; every swap is checked before it is made.
                fronts[g], fronts[h] = self._front(g), self._front(h)
        return improved

    def _front(self, g: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(latency change rising, gain rising, width index) of the moves that no other beats on both."""
        order = np.lexsort((-self.gains[g], self.rows[g]))
        gain = self.gains[g][order]
        best = np.maximum.accumulate(gain)
        first = np.flatnonzero(np.diff(best, prepend=-np.inf) > 0.0)
        return self.rows[g][order][first], gain[first], order[first]
