"""Bounds at a price: the dual over coarse cells, and made sharp where the answer lies.

Coarse cells promise too much. But at one price few widths can be part of the best choice at all: dead ends go
(``thin``), and so does every cell whose best is under what some choice is worth (its min-marginal). What is left has
finer cells, so it all may be repeated, until every cell is a single width: then the dual at that price is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from halp_iee.solve.dual import Choice, DualResult, Oracle, minimise_dual
from halp_iee.solve.network import Network, cell_starts, cut, left_of, loosen, sample, with_images
from halp_iee.solve.order import elimination_order
from halp_iee.solve.search import Search
from halp_iee.solve.thin import thin

_PASS_WORK = 3_000_000
"""Table entries of one pass of the elimination: about 15 ms."""
_QUICK_WORK = 300_000
"""The same for the first look."""
_SAMPLE = 24
"""Widths a group for that look."""
_SAMPLE_OF_SUMS = 8
"""The same where there are sums."""
_BESIDE = 8
"""Cells of a group that is in no sum, to one of a sum's image: its layouts differ from one width to the next."""
_SPARE = 0.01
"""Share of the budget up to which the couplings of sums that are left out may be optimistic."""
_LAST = 4
"""Choices of the dual that are looked at."""
_APART = 1.6
"""By what factor the prices for which dead ends are left out at once lie on either side of the one expected."""
_SHIFTS = 4
"""How often the prices are moved before nothing is left out."""
_ALL = (0.0, math.inf)
_ROUNDS = 6
"""How often a network is made smaller at one price."""
_STEPS = 16
"""Prices at which the dual is made exact, at most."""
_SHARP = 1e-6
"""Share of the dual's value to which it is made exact."""
_ROUNDING = 1e-9
"""Share of a value that sums in different orders may differ by, with room to spare."""


def coarse_oracle(network: Network, work: int = _PASS_WORK, near: np.ndarray | None = None) -> Oracle:
    """The finest cells with which one pass stays within ``work``, tight around the widths ``near``.

    Where sums are to be coarse, the tables see images of them, and those become coarse first: the sum of two intervals
    is wider than either, so wide cells of a sum's parts lose more.
    """
    sizes = [len(variable.grid) for variable in network.variables]
    order = elimination_order(sizes, network.scopes, network.relations)
    if order.work(sizes) > work and network.relations:
        network = loosen(network, _SPARE * network.problem.budget_ms)
        order = elimination_order(sizes, network.scopes, network.relations)
    if order.work(sizes) > work and network.relations:
        network = with_images(network)
        sizes = [len(variable.grid) for variable in network.variables]
        order = elimination_order(sizes, network.scopes, network.relations, network.images)
    tied, images = network.in_relations, {image: v for v, image in network.images}
    levels = [
        max(sizes),
        *(most for most in (512, 256, 128, 96, 64, 48, 32, 24, 16, 12, 8) if most < max(sizes)),
    ]
    reference = None
    if near is not None:
        reference = np.array(
            [
                min(
                    int(np.searchsorted(v.grid, sum(per * int(near[g]) for g, per in v.members))),
                    len(v.grid) - 1,
                )
                for v in network.variables
            ]
        )

    @cache
    def starts_of(v: int, most: int) -> np.ndarray:
        return cell_starts(network.variables[v], most, None if reference is None else int(reference[v]))

    beside = _BESIDE if images else 1

    @cache
    def starts(tied_most: int, most: int) -> tuple[np.ndarray, ...]:
        found = [
            starts_of(v, tied_most if v in tied else most if v in images else beside * most) for v in range(len(sizes))
        ]
        for image, v in images.items():
            # An image's cells are made of whole ones of what it is the image of.
            found[v] = np.union1d(found[v], found[image])
        return tuple(found)

    def fits(cut_at: tuple[np.ndarray, ...]) -> bool:
        return order.work([len(start) for start in cut_at]) <= work

    for tied_most in levels if tied else levels[:1]:
        for most in levels:
            if fits(starts(tied_most, most)):
                return Oracle(cut(network, starts(tied_most, most), reference), order, cap=work)
            if tied_most != levels[-1] and tied and most <= 16:
                break
    # Too wide even so: keep moderate cells and minimise in parts.
    return Oracle(cut(network, starts(64, 64), reference), order, cap=work // 8)


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The dual of a network over coarse cells.

    Attributes:
        network: what may be part of the best choice at a price in ``prices``.
        prices: importance a ms, from and to.
        oracle, result: over the cells of ``network``, and at prices in ``prices``.
        work: table entries.
    """

    network: Network
    prices: tuple[float, float]
    oracle: Oracle
    result: DualResult
    work: int


def relax(
    network: Network,
    ceiling_ms: float,
    near: np.ndarray | None,
    pass_work: int = _PASS_WORK,
    price: float | None = None,
) -> Relaxed:
    """The dual of one network, its cells tight around ``near``, its price sought from ``price`` on.

    Without them a quick look with few cells says where the choice will lie.
    """
    work = 0
    if near is None or price is None:
        look = sample(network, _SAMPLE_OF_SUMS if network.relations else _SAMPLE)
        quick = coarse_oracle(look, _QUICK_WORK)
        result = minimise_dual(quick, ceiling_ms, slack=_slack(quick))
        work = quick.elimination.work * (len(result.path) + 2)
        if math.isfinite(result.bound):
            near, price = _nearest(look, result), result.price
    sizes = [len(variable.grid) for variable in network.variables]
    wide = elimination_order(sizes, network.scopes, network.relations).work(sizes) > pass_work
    if wide and price is not None and 0.0 < price < math.inf:
        for _ in range(_SHIFTS):
            prices = (price / _APART, price * _APART)
            left = thin(network, prices)
            oracle = coarse_oracle(left, pass_work, near)
            result = minimise_dual(oracle, ceiling_ms, price, _slack(oracle), prices)
            work += oracle.elimination.work * (len(result.path) + 2)
            price = result.price
            if prices[0] < price < prices[1]:
                return Relaxed(left, prices, oracle, result, work)
    oracle = coarse_oracle(network, pass_work, near)
    result = minimise_dual(oracle, ceiling_ms, price, _slack(oracle))
    return Relaxed(network, _ALL, oracle, result, work + oracle.elimination.work * (len(result.path) + 2))


class Sharp:
    """The dual of a network at a price over ever fewer and finer cells.

    Attributes:
        work: table entries of all passes so far.
    """

    def __init__(self, network: Network, search: Search, ceiling_ms: float, pass_work: int) -> None:
        self.network, self.search, self.ceiling_ms, self.pass_work = network, search, ceiling_ms, pass_work
        self.points: list[np.ndarray] = []
        self.work = 0

    def choose(self, price: float) -> tuple[float, Choice]:
        """A lower bound on the least of price * latency - value, without ``constant_ms``, and the best choice known."""
        network, pass_work = self.network, self.pass_work
        most, worth, best = math.inf, -math.inf, None
        for point in self.points:
            found = self._worth(point, price)
            if found > worth:
                worth, best = found, point
        for _ in range(_ROUNDS):
            oracle = coarse_oracle(network, pass_work, None if best is None else self.search.widths(best))
            least, choice = oracle.choose(price)
            self.work += oracle.elimination.work
            point = self.search.polish(self.search.indices(choice.widths), price)
            found = self._worth(point, price)
            if found > worth:
                worth, best = found, point
            # What was left out is worth less than the best choice known.
            most = min(most, max(worth, price * (self.ceiling_ms - network.constant_ms) - least))
            done = oracle.cells.exact and oracle.network is network
            if done or not oracle.elimination.exact or most - worth <= _SHARP * abs(most):
                break
            self.work += 4 * oracle.elimination.work
            left = shrink(network, oracle, price, self.ceiling_ms, worth - _ROUNDING * abs(most), 0.0)
            if left is None:
                most = worth
                break
            if _widths(left) > 0.9 * _widths(network):
                pass_work *= 4
                if pass_work > 16 * self.pass_work:
                    break
            network = left
        assert best is not None
        self.points.append(best)
        value, latency_ms = self.search.value(best), self.search.latency_ms(best)
        most += _ROUNDING * abs(most)
        bare = price * (self.ceiling_ms - self.network.constant_ms) - most
        return bare, Choice(price, np.zeros(0, dtype=np.int64), self.search.widths(best), value, latency_ms)

    def minimise(
        self, start: float, prices: tuple[float, float], enough: Callable[[float, np.ndarray], bool], slack: float
    ) -> DualResult:
        """The least of the dual between two prices: at every step where the choices known say that it may lie.

        Every choice k bounds the dual from below by V(k) - price * (T(k) - budget), so the least of the highest of
        these lines is under the dual's least (J. E. Kelley, Journal of the SIAM 8 (1960)).

        Args:
            start: the first price.
            enough: told every bound, and the choice there; says when to stop.
            slack: share of the bound to which the least is found.
        """
        bound, best_price, price = math.inf, start, start
        path: list[Choice] = []
        for _ in range(_STEPS):
            least, choice = self.choose(price)
            path.append(choice)
            found = price * (self.ceiling_ms - self.network.constant_ms) - least
            if found < bound:
                bound, best_price = found, price
            if enough(bound, self.points[-1]):
                break
            price, under = self._lowest(prices)
            known = any(abs(price - one.price) <= 1e-6 * price for one in path)
            if known or bound - under <= slack * abs(bound):
                break
        return DualResult(bound, best_price, tuple(path), -math.inf)

    def _lowest(self, prices: tuple[float, float]) -> tuple[float, float]:
        """Where between two prices the highest of the lines of all choices known is lowest, and how low."""
        value = np.array([self.search.value(point) for point in self.points])
        over_ms = np.array([self.search.latency_ms(point) for point in self.points]) - self.ceiling_ms
        apart = over_ms[:, None] - over_ms
        with np.errstate(divide="ignore", invalid="ignore"):
            crossings = (value[:, None] - value) / apart
        at = crossings[np.isfinite(crossings) & (crossings > prices[0]) & (crossings < prices[1])]
        at = np.unique(np.append(at, prices))
        highest = (value - at[:, None] * over_ms).max(axis=1)
        lowest = int(np.argmin(highest))
        return float(at[lowest]), float(highest[lowest])

    def _worth(self, point: np.ndarray, price: float) -> float:
        return self.search.value(point) - price * (self.search.latency_ms(point) - self.ceiling_ms)


def _widths(network: Network) -> int:
    return sum(len(variable.grid) for variable in network.variables)


def shrink(
    network: Network, oracle: Oracle, price: float, ceiling_ms: float, above: float, spare: float
) -> Network | None:
    """What is left once whatever cannot be worth ``above`` at the price is gone; None when nothing is.

    Args:
        oracle: over cells of ``network``; its plan is exact.
        spare: by how much the most at that price may be over ``above``; 0 where nothing is worth more than ``above``
            but the choices sought themselves.
    """
    alive = [reach >= above for reach in oracle.reach(price, ceiling_ms)]
    left = left_of(network, oracle.cells, alive)
    return None if left is None else thin(left, (price, price), spare)


def core(
    network: Network, price: float, most: float, above: float, ceiling_ms: float, pass_work: int,
    near: np.ndarray | None,
) -> tuple[Network | None, Oracle | None, int]:  # fmt: skip
    """What of a network may hold widths within the budget that keep more than ``above``; an oracle; and the work.

    Args:
        price, most: of a dual of the network: nothing is worth more than ``most`` at ``price``.
    """
    work = 0
    left: Network | None = thin(network, (price, price), max(0.0, most - above))
    oracle = None
    for _ in range(_ROUNDS):
        assert left is not None
        oracle = coarse_oracle(left, pass_work, near)
        if not oracle.elimination.exact:
            return left, oracle, work
        work += 4 * oracle.elimination.work
        before = _widths(left)
        left = shrink(left, oracle, price, ceiling_ms, above, max(0.0, most - above))
        if left is None:
            return None, None, work
        if _widths(left) > 0.9 * before:
            break
    assert left is not None
    return left, coarse_oracle(left, pass_work, near), work


def _slack(oracle: Oracle) -> float:
    """How near to the dual's least to go: where a pass is dear, no nearer than matters."""
    return 1e-5 if oracle.cells.network.images else 1e-10


def _nearest(network: Network, result: DualResult) -> np.ndarray:
    """Of the dual's last choices the widths whose latency is nearest to the budget."""
    problem = network.problem
    choices = np.array([choice.widths for choice in result.path[-_LAST:]])
    return choices[np.argmin(np.abs(problem.latency_ms(choices) - problem.budget_ms))]
