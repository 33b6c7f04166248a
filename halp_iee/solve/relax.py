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
from halp_iee.solve.lines import Lines
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
_NARROW = 1.12
"""The same where that has been found with care."""
_SCOUTING = 12
"""Prices at which local moves look for the best choice, at most."""
_SHIFTS = 4
"""How often the prices are moved before nothing is left out."""
_ALL = (0.0, math.inf)
_ROUNDS = 6
"""How often a network is made smaller at one price."""
_FEWER = 0.9
"""What is this share of the widths before is hardly less."""
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
        look, result, work = _look(network, ceiling_ms)
        if math.isfinite(result.bound):
            near, price = _nearest(look, result), result.price
    if price is not None and 0.0 < price < math.inf and wide(network, pass_work):
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


def wide(network: Network, pass_work: int) -> bool:
    """Whether one pass over all widths takes more than ``pass_work``."""
    sizes = _sizes(network)
    return elimination_order(sizes, network.scopes, network.relations).work(sizes) > pass_work


def _look(network: Network, ceiling_ms: float) -> tuple[Network, DualResult, int]:
    """A few widths of every group, their dual, and the work."""
    look = sample(network, _SAMPLE_OF_SUMS if network.relations else _SAMPLE)
    quick = coarse_oracle(look, _QUICK_WORK)
    result = minimise_dual(quick, ceiling_ms, slack=_slack(quick))
    return look, result, quick.elimination.work * (len(result.path) + 2)


def scout(network: Network, search: Search, ceiling_ms: float) -> tuple[float, list[np.ndarray], int] | None:
    """A price near the one at which the dual is least, choices that suggest it, and the work; None where none do.

    The choices of a quick look with few widths, improved by local moves at the price at which the highest of their
    lines is lowest, again and again. All of it is a guess: nothing here is a bound.
    """
    _, result, work = _look(network, ceiling_ms)
    if not (math.isfinite(result.bound) and 0.0 < result.price < math.inf):
        return None
    lines = Lines(search, ceiling_ms)
    for choice in result.path:
        lines.add(search.indices(choice.widths))
    price, tried = result.price, set[float]()
    for _ in range(_SCOUTING):
        if price in tried:
            break
        tried.add(price)
        new = lines.add(search.polish(lines.best(price)[0], price))
        if not lines.straddle:
            return None
        price, _ = lines.lowest()
        if not new and any(abs(price - one) <= 1e-3 * price for one in tried):
            break
    return (price, lines.points, work) if 0.0 < price < math.inf else None


class Sharp:
    """The dual of a network at a price over ever fewer and finer cells.

    Attributes:
        lines: the choices known, which the dual lies above.
        enough: a bound that need not be made sharper.
        work: table entries of all passes so far.
    """

    def __init__(
        self, network: Network, search: Search, ceiling_ms: float, pass_work: int,
        left: Network | None = None, prices: tuple[float, float] = (math.inf, -math.inf),
    ) -> None:  # fmt: skip
        """``left``: what of the network may be part of the best choice at ``prices``, where that is known."""
        self.network, self.search, self.ceiling_ms, self.pass_work = network, search, ceiling_ms, pass_work
        self.lines = Lines(search, ceiling_ms)
        self.enough = -math.inf
        self.work = 0
        self._left, self._prices = left, prices

    def _at(self, price: float) -> Network:
        """What of the network may be part of the best choice at a price."""
        if self._left is None or not self._prices[0] <= price <= self._prices[1]:
            self._prices = (price / _NARROW, price * _NARROW)
            self._left = thin(self.network, self._prices)
        return self._left

    def choose(self, price: float) -> tuple[float, Choice]:
        """A lower bound on the least of price * latency - value, without ``constant_ms``, and the best choice known."""
        network, pass_work = self._at(price), self.pass_work
        most, worth = math.inf, -math.inf
        best: np.ndarray | None = None
        if self.lines.points:
            best, worth = self.lines.best(price)
        thinned: list[int] | None = None
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
            near = most - worth <= _SHARP * abs(most) or most <= self.enough
            if done or near or not oracle.elimination.exact:
                break
            self.work += 4 * oracle.elimination.work
            left = shrink(network, oracle, price, self.ceiling_ms, worth - _ROUNDING * abs(most), 0.0, thinned)
            if left is None:
                most = worth
                break
            thinned = _sizes(left)
            if _widths(left) > _FEWER * _widths(network):
                pass_work *= 4
                if pass_work > 16 * self.pass_work:
                    break
            network = left
        assert best is not None
        self.lines.add(best)
        value, latency_ms = self.search.value(best), self.search.latency_ms(best)
        most += _ROUNDING * abs(most)
        bare = price * (self.ceiling_ms - self.network.constant_ms) - most
        return bare, Choice(price, np.zeros(0, dtype=np.int64), self.search.widths(best), value, latency_ms)

    def minimise(self, start: float, enough: Callable[[float, np.ndarray], bool], slack: float) -> DualResult:
        """The least of the dual: at every step at the price where the choices known say that it may lie.

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
            if enough(bound, self.search.indices(choice.widths)):
                break
            price, under = self.lines.lowest()
            known = any(abs(price - one.price) <= 1e-6 * price for one in path)
            if known or not 0.0 < price < math.inf or bound - under <= slack * abs(bound):
                break
        return DualResult(bound, best_price, tuple(path), -math.inf)

    def _worth(self, point: np.ndarray, price: float) -> float:
        return self.search.value(point) - price * (self.search.latency_ms(point) - self.ceiling_ms)


def _sizes(network: Network) -> list[int]:
    return [len(variable.grid) for variable in network.variables]


def _widths(network: Network) -> int:
    return sum(_sizes(network))


def shrink(
    network: Network, oracle: Oracle, price: float, ceiling_ms: float, above: float, spare: float,
    thinned: list[int] | None = None,
) -> Network | None:  # fmt: skip
    """What is left once whatever cannot be worth ``above`` at the price is gone; None when nothing is.

    Args:
        oracle: over cells of ``network``; its plan is exact.
        spare: by how much the most at that price may be over ``above``; 0 where nothing is worth more than ``above``
            but the choices sought themselves.
        thinned: widths of every variable once dead ends at that price were last left out.
    """
    alive = [reach >= above for reach in oracle.reach(price, ceiling_ms)]
    left = left_of(network, oracle.cells, alive)
    return None if left is None else thin(left, (price, price), spare, thinned)


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
    assert left is not None
    thinned = _sizes(left)
    for _ in range(_ROUNDS):
        assert left is not None
        oracle = coarse_oracle(left, pass_work, near)
        if not oracle.elimination.exact:
            return left, oracle, work
        work += 4 * oracle.elimination.work
        before = _widths(left)
        left = shrink(left, oracle, price, ceiling_ms, above, max(0.0, most - above), thinned)
        if left is None:
            return None, None, work
        thinned = _sizes(left)
        if _widths(left) > _FEWER * before:
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
