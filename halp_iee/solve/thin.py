"""Widths that no best choice has at a price, found before any dynamic programming: dead ends.

At the price lambda a choice of widths k is worth L(k) = V(k) - lambda T(k). If width j of a group is worth more than
width i whatever the widths of the layers beside it,

    V(j) - V(i) - lambda sum_l max_u (T_l(j, u) - T_l(i, u))  >  spare,

then every choice with i loses more than ``spare`` against the same one with j. With ``spare`` 0 the widths that are
left give the same dual at that price; with ``spare`` the distance of the dual from an answer V0, what was left out
holds nothing within the budget that beats V0. Both sides are linear in lambda, so what holds at both ends of an
interval of prices holds within it. On measured staircases this leaves a small part of the widths: those at the end of
a step, and the few where a short step is worth it.

The criterion: R. F. Goldstein, Biophysical Journal 66 (1994), for the side chains of proteins; here for widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from halp_iee.solve.network import Network, restrict

_ROUNDS = 6
_SEEN = (0.0, 0.2, 1.0)
"""Where among the widths beside a group to look for what might be better."""
_REACH = (4, 24)
"""Widths on either side among which the better one is sought, besides all."""
_SOME = 8
"""Widths beside a group at which a pair is tried before it is at all of them."""
_AT_ONCE = 1 << 17
"""Entries that are looked at in one go: what stays in the cache."""
_STRIP = 16
"""Columns that are turned into rows at a time."""
_WORTHWHILE = 0.9
"""A group is looked at again once the widths beside it are fewer than this share of what they were."""
_ROUNDING = 2e-6
"""Share of the largest latency that single precision may be wrong by, with room to spare."""


def thin(
    network: Network, prices: tuple[float, float], spare: float = 0.0, before: Sequence[int] | None = None
) -> Network:
    """The network without the dead ends at any price of an interval.

    Groups that take part in a sum are left as they are.

    Args:
        prices: importance a ms, the least and the most.
        spare: importance that a width must lose more than, to go.
        before: widths of every variable when this was last done, at the same prices: new dead ends are only where
            there are fewer widths beside.
    """
    return restrict(network, _Thinning(network, prices, spare).run(before))


_Held = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A table, and which widths its rows and columns are."""


class _Thinning:
    def __init__(self, network: Network, prices: tuple[float, float], spare: float) -> None:
        self.network, self.prices, self.spare = network, prices, spare
        self.kept = [np.arange(len(variable.grid)) for variable in network.variables]
        tied = network.in_relations
        self.scopes: list[list[tuple[int, ...]]] = [[] for _ in network.variables]
        for scope in network.latencies:
            for v in scope:
                self.scopes[v].append(scope)
        # A group that is in no layer costs nothing, and the dual alone keeps it whole.
        self.free = [
            g for g in range(len(network.problem.groups)) if g not in tied and len(self.kept[g]) > 1 and self.scopes[g]
        ]
        self.largest_ms = {s: max(float(ms.max()), -float(ms.min())) for s, ms in network.latencies.items()}
        self.tables: dict[tuple[tuple[int, ...], int], _Held] = {}

    def run(self, before: Sequence[int] | None = None) -> list[np.ndarray]:
        seen = {g: math.inf if before is None else self._beside(g, before) for g in self.free}
        for _ in range(_ROUNDS):
            done = True
            left = [len(kept) for kept in self.kept]
            for g in sorted(self.free, key=lambda g: (left[g] * self._beside(g, left), g)):
                beside = self._beside(g, [len(kept) for kept in self.kept])
                if len(self.kept[g]) > 1 and beside < _WORTHWHILE * seen[g]:
                    seen[g] = beside
                    done &= not self._group(g)
            if done:
                break
        return self.kept

    def _beside(self, g: int, sizes: Sequence[int]) -> float:
        """Widths that the layers of a group have on their other sides, where every variable has ``sizes``."""
        return sum(sizes[v] for scope in self.scopes[g] for v in scope if v != g) + 1.0

    def _table(self, scope: tuple[int, ...], g: int) -> np.ndarray:
        """Latency in ms by the widths of ``g`` and of what is beside it."""
        if len(scope) == 1:
            return self.network.latencies[scope][self.kept[g], None].astype(np.float32)
        axis = scope.index(g)
        own, beside = self.kept[g], self.kept[scope[1 - axis]]
        held = self.tables.get((scope, axis))
        if held is None:
            other = self.tables.get((scope, 1 - axis))
            if other is None:
                table = self.network.latencies[scope]
                rows, columns = (np.arange(size) for size in table.shape)
                other = (table, rows, columns) if axis == 1 else (table.T, columns, rows)
            # What has gone already need not be turned round.
            table, rows, columns = _only(other, beside, own)
            held = (_turned(table), columns, rows)
        kept = self.tables[(scope, axis)] = _only(held, own, beside)
        return kept[0]

    def _group(self, g: int) -> bool:
        """Take the dead ends of one group away; whether there were any."""
        tables = [self._table(scope, g) for scope in self.scopes[g]]
        values = self.network.variables[g].values[self.kept[g]]
        needed = self.spare + _ROUNDING * self.prices[1] * sum(self.largest_ms[scope] for scope in self.scopes[g])
        some = np.stack([table[:, np.linspace(0, table.shape[1] - 1, _SOME).astype(int)].T for table in tables], axis=1)
        better = self._better(tables, values)
        slower = np.stack([_slower_at_some(some, other) for other in better])
        promised = self._worth(values[better] - values, slower)
        dead = np.zeros(len(values), dtype=bool)
        every = np.arange(len(values))
        for _ in range(2):
            pick = np.argmax(promised, axis=0)
            at = np.flatnonzero(~dead & (promised[pick, every] > needed))
            if not len(at):
                break
            other = better[pick[at], at]
            more_ms = np.stack([_most_slower(table, at, other) for table in tables]).sum(axis=0)
            margin = self._worth(values[other] - values[at], more_ms)
            dead[at[margin > needed]] = True
            promised[better == better[pick, every]] = -np.inf
        self.kept[g] = self.kept[g][~dead]
        return bool(dead.any())

    def _worth(self, gain: np.ndarray, slower: np.ndarray) -> np.ndarray:
        """What a gain of importance is worth beside a loss of ms, at the worse of the prices."""
        return np.minimum(gain - self.prices[0] * slower, gain - self.prices[1] * slower)

    def _better(self, tables: list[np.ndarray], values: np.ndarray) -> np.ndarray:
        """For every width some that may be better, shape (candidates, widths)."""
        count = len(values)
        price = 0.5 * (self.prices[0] + self.prices[1])
        at = [sum(table[:, int(share * (table.shape[1] - 1))] for table in tables) for share in _SEEN]
        worth = values - price * np.stack(at)
        found = [np.broadcast_to(np.argmax(worth, axis=1)[:, None], worth.shape)]
        for reach in _REACH:
            if reach < count:
                found += [_best_after(worth, reach), count - 1 - _best_after(worth[:, ::-1], reach)[:, ::-1]]
        return np.concatenate(found)


def _best_after(worth: np.ndarray, reach: int) -> np.ndarray:
    """For every width the one worth most among it and the ``reach`` after it, a row."""
    padded = np.concatenate([worth, np.full((len(worth), reach), -np.inf)], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach + 1, axis=1)
    return windows.argmax(axis=2) + np.arange(worth.shape[1])


def _only(held: _Held, own: np.ndarray, beside: np.ndarray) -> _Held:
    """The same table with only some of its rows and columns."""
    table, rows, columns = held
    if len(own) < len(rows):
        table = table.take(np.searchsorted(rows, own), axis=0)
    if len(beside) < len(columns):
        table = table.take(np.searchsorted(columns, beside), axis=1)
    return table, own, beside


def _turned(table: np.ndarray) -> np.ndarray:
    """The transposed table in single precision, made strip by strip so that both sides stay in the cache."""
    turned = np.empty(table.shape[::-1], dtype=np.float32)
    if table.flags.f_contiguous:
        turned[...] = table.T
        return turned
    for first in range(0, table.shape[1], _STRIP):
        turned[first : first + _STRIP] = table[:, first : first + _STRIP].T
    return turned


def _slower_at_some(some: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By how many ms ``other`` is slower than every width, at the worst of some widths beside it.

    Args:
        some: ms, shape (widths beside, tables, widths).
    """
    apart = some.take(other, axis=2)
    apart -= some
    return apart.max(axis=0).sum(axis=0)


def _most_slower(table: np.ndarray, at: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By how many ms ``other`` is slower than ``at``, at the worst of what is beside them."""
    most = np.empty(len(at))
    step = max(1, _AT_ONCE // table.shape[1])
    for first in range(0, len(at), step):
        part = slice(first, first + step)
        apart = table[other[part]]
        apart -= table[at[part]]
        most[part] = apart.max(axis=1)
    return most
