"""The default solver: every layer's true T(c_in, c_out), with a proof of how good the answer is.

1. The Lagrangian dual, solved exactly by dynamic programming, bounds the importance; the widths on its
   path, mended and improved by local moves, give answers.
2. While bound and answer are apart: every width whose best possible importance (its min-marginal in the
   dual) does not exceed the answer is ruled out, so the cells of what is left become finer and the bound
   falls; where that stalls, the widths of one group are split in two (branch and bound, best first);
   where few combinations are left, they are all tried.

Work is counted in table entries, not in seconds, so the answer does not depend on the machine's load.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from halp_iee.solve.dual import DualResult, Oracle, minimise_dual
from halp_iee.solve.halp import solve_halp
from halp_iee.solve.labels import TooManyLabelsError, closable, close
from halp_iee.solve.network import Network, cell_starts, compile_network, cut, left_of, restrict, with_images
from halp_iee.solve.order import elimination_order
from halp_iee.solve.problem import Problem
from halp_iee.solve.search import Search

_PASS_WORK = 3_000_000
"""Table entries of one pass of the elimination: about 15 ms."""
_FINE_WORK = 100_000
"""The same a variable, once there is an answer to be fine around."""
_QUICK_WORK = 300_000
"""The same for the first look."""
_SAMPLE = 24
"""Widths a variable for that look, where no sums need all of them."""
_BESIDE = 8
"""Cells of a group that is in no sum, to one of a sum's image: its layouts differ from one width to the next."""
_FIRST_SUM_WORK = 12_000_000
_SUM_WORK = 50_000_000
"""Table entries of one pass where sums have images: most of them are added up in cache."""
_SPARE = 0.01
"""Share of the budget up to which the couplings of sums that are left out may be optimistic."""
_LAST = 4
"""Choices of the dual that are looked at."""
_TOTAL_WORK = 800_000_000
"""Table entries after which no further node is opened: about three seconds."""
_NODE_WORK = 25_000
"""What a node costs besides its passes, a variable, in the same measure."""
_LABELS = (500, 2000)
"""Labels a message may hold in a first pass and, where that found something better, in a second."""
_NEARLY = 0.8
"""The share of the tolerance at which the label passes aim."""
_LABEL_WORK = 30
"""What a label costs, in table entries."""
_ENUMERATE = 100_000
"""Combinations that are tried one by one."""
_EPSILON = 1e-10
"""Improvements smaller than this share are not looked for."""


@dataclass(frozen=True, eq=False)
class Solved:
    """Widths, shape (groups,), and a bound on the importance of any others within the budget."""

    widths: np.ndarray
    value: float
    bound: float


def coarse_oracle(network: Network, work: int = _PASS_WORK, near: np.ndarray | None = None) -> Oracle:
    """The finest cells with which one pass stays within ``work``, tight around the widths ``near``.

    Where sums are to be coarse, the tables see images of them, and those become coarse first: the sum of two intervals
    is wider than either, so wide cells of a sum's parts lose more.
    """
    sizes = [len(variable.grid) for variable in network.variables]
    order = elimination_order(sizes, network.scopes, network.relations)
    if order.work(sizes) > work and network.relations:
        network = with_images(network, _SPARE * network.problem.budget_ms)
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


def relax(
    network: Network,
    ceiling_ms: float,
    near: np.ndarray | None,
    pass_work: int = _PASS_WORK,
    price: float | None = None,
) -> tuple[Oracle, DualResult, int]:
    """The dual of one network, its cells tight around ``near``, its price sought from ``price`` on; and the work.

    Without ``near`` a quick look with few cells says where the choice will lie.
    """
    work = 0
    if near is None:
        look = network if network.relations else _sample(network)
        quick = coarse_oracle(look, _QUICK_WORK)
        result = minimise_dual(quick, ceiling_ms, slack=_slack(quick))
        work = quick.elimination.work * (len(result.path) + 2)
        if math.isfinite(result.bound):
            near, price = _nearest(look, result), result.price
        if look is network and (quick.cells.exact or near is None):
            return quick, result, work
    oracle = coarse_oracle(network, pass_work, near)
    result = minimise_dual(oracle, ceiling_ms, price, _slack(oracle))
    return oracle, result, work + oracle.elimination.work * (len(result.path) + 2)


def _slack(oracle: Oracle) -> float:
    """How near to the dual's least to go: where a pass is dear, no nearer than matters."""
    return 1e-5 if oracle.cells.network.images else 1e-10


def _sample(network: Network) -> Network:
    """The network with only the last width of each of a few cells: a look, but no bound."""
    kept = []
    for variable in network.variables:
        starts = cell_starts(variable, _SAMPLE)
        kept.append(np.append(starts[1:], len(variable.grid)) - 1)
    return restrict(network, kept)


def _nearest(network: Network, result: DualResult) -> np.ndarray:
    """Of the dual's last choices the widths whose latency is nearest to the budget."""
    problem = network.problem
    groups = network.variables[: len(problem.groups)]
    choices = np.array(
        [[v.grid[i] for v, i in zip(groups, choice.points, strict=False)] for choice in result.path[-_LAST:]]
    )
    return choices[np.argmin(np.abs(problem.latency_ms(choices) - problem.budget_ms))]


def bound_importance(problem: Problem, network: Network | None = None, near: np.ndarray | None = None) -> float:
    """An upper bound on the importance of any widths within the budget."""
    _, result, _ = relax(network or compile_network(problem), problem.ceiling_ms, near)
    return result.bound if math.isfinite(result.bound) else problem.value(problem.most)


def solve_joint(
    problem: Problem,
    tolerance: float = 5e-4,
    *,
    total_work: int = _TOTAL_WORK,
    enumerate_at: int = _ENUMERATE,
    network: Network | None = None,
    start: np.ndarray | None = None,
) -> Solved | None:
    """Maximise importance under the exact latency; None when no widths within the budget were found.

    Args:
        tolerance: stop once ``(bound - value) / bound`` is at most this.
        total_work: table entries after which no further node is opened.
        enumerate_at: combinations that are tried one by one.
        network: the compiled problem, where it is there already.
        start: widths to begin from.
    """
    network = compile_network(problem) if network is None else replace(network, problem=problem)
    branch = _Branch(problem, Search(network), enumerate_at)
    branch.offer_widths(start)
    bound = branch.run(network, tolerance, total_work)
    if bound - branch.value > _EPSILON * abs(bound) and problem.least.min(initial=1) > 0:
        # The knapsack's answer is a point like any other; so this solver's is never below it.
        branch.offer_widths(solve_halp(problem, between=(branch.value, bound * (1.0 + _EPSILON))))
    if branch.point is None:
        return None
    return Solved(branch.search.widths(branch.point), branch.value, max(bound, branch.value))


class _Branch:
    """The best answer so far, and the nodes that may hold a better one."""

    def __init__(self, problem: Problem, search: Search, enumerate_at: int) -> None:
        self.problem = problem
        self.search = search
        self.enumerate_at = enumerate_at
        self.point: np.ndarray | None = None
        self.value = -math.inf
        self.price: float | None = None
        self.work = 0

    def run(self, network: Network, tolerance: float, total_work: int) -> float:
        """Open nodes, the most promising first; returns the bound."""
        top = self.problem.value(self.problem.most)
        heap: list[tuple[float, int, Network]] = [(-top, 0, network)]
        opened = 1
        while heap:
            bound = -heap[0][0]
            if self._within(bound, tolerance) or (opened > 1 and self.work > total_work):
                return bound
            _, _, node = heapq.heappop(heap)
            for bound_of_child, child in self._open(node, bound, tolerance):
                heapq.heappush(heap, (-bound_of_child, opened, child))
                opened += 1
        return self.value * (1.0 + _EPSILON) if self.point is not None else -math.inf

    def _within(self, bound: float, tolerance: float) -> bool:
        return self.point is not None and bound - self.value <= tolerance * bound

    @property
    def _threshold(self) -> float:
        return self.value * (1.0 + _EPSILON) if self.point is not None else -math.inf

    def _open(self, network: Network, above: float, tolerance: float) -> list[tuple[float, Network]]:
        near = None if self.point is None else self.search.widths(self.point)
        pass_work = _PASS_WORK if near is None else _FINE_WORK * len(network.variables)
        if network.relations:
            pass_work = _FIRST_SUM_WORK if near is None else _SUM_WORK
        oracle, result, work = relax(network, self.problem.ceiling_ms, near, pass_work, self.price)
        if math.isfinite(result.bound):
            self.price = result.price
        self.work += work + _NODE_WORK * len(network.variables)
        bound = min(above, result.bound)
        if bound <= self._threshold:
            return []
        self._try_path(oracle, result, last=1 if self.point is not None else 3)
        if not self._within(bound, tolerance):
            bound = self._close(oracle, result, bound, tolerance)
        if bound <= self._threshold:
            return []
        if self._within(bound, tolerance):
            return [(bound, network)]
        child = self._rule_out(network, oracle, result)
        if child is None:
            return []
        count = len(self.problem.groups)
        if math.prod(len(variable.grid) for variable in child.variables[:count]) <= self.enumerate_at:
            self._try_all(child)
            return []
        shrunk = sum(len(v.grid) for v in child.variables) < 0.8 * sum(len(v.grid) for v in network.variables)
        coarse = bool(oracle.cells.network.images) and oracle.elimination.work <= _FIRST_SUM_WORK
        if shrunk or (coarse and near is None):
            return [(bound, child)]
        return [(bound, half) for half in _split(child, oracle, result)]

    def _try_path(self, oracle: Oracle, result: DualResult, last: int) -> None:
        """Answers from the last choices of the dual, which lie next to its least."""
        network = oracle.cells.network
        seen = set()
        for choice in result.path[: -last - 1 : -1]:
            raw = self.search.indices([network.variables[g].grid[choice.points[g]] for g in range(self.search.count)])
            for point in (self.search.polish(raw, choice.price), raw)[:last]:
                if point.tobytes() not in seen:
                    seen.add(point.tobytes())
                    self._offer(self.search.improve(point))

    def offer_widths(self, widths: np.ndarray | None) -> None:
        """Take these widths as the answer where the budget holds them and they are better."""
        if widths is not None and self.problem.first_within(widths[None, :]) is not None:
            self._offer((self.search.indices(widths), self.problem.value(widths)))

    def _offer(self, found: tuple[np.ndarray, float] | None) -> None:
        if found is not None and found[1] > self.value:
            self.point, self.value = found

    def _close(self, oracle: Oracle, result: DualResult, bound: float, tolerance: float) -> float:
        """The bound once what the dual leaves open is looked through with its latencies, and answers from there."""
        network, price = oracle.cells.network, result.price
        if self.point is None or not (closable(oracle) and 0.0 < price < math.inf):
            return bound
        for most in _LABELS:
            above = self.value / (1.0 - _NEARLY * tolerance)
            if above >= bound:
                break
            try:
                found = close(oracle, price, self.problem.ceiling_ms, above, most)
            except TooManyLabelsError:
                self.work += 30 * 200_000
                break
            self.work += _LABEL_WORK * found.work
            before = self.value
            for cells in found.choices:
                point = self.search.indices([network.variables[g].grid[cells[g]] for g in range(self.search.count)])
                self._offer(self.search.improve(point))
            bound = min(bound, found.bound)
            if self._within(bound, tolerance) or self.value <= before:
                break
        return bound

    def _rule_out(self, network: Network, oracle: Oracle, result: DualResult) -> Network | None:
        """What is left when every cell that cannot beat the answer is gone; None when nothing is."""
        cells = oracle.cells
        if not oracle.elimination.exact:
            return network
        self.work += 4 * oracle.elimination.work
        # The answer's own cells go too: only what is better is looked for.
        reach = oracle.reach(result.price, self.problem.ceiling_ms) if math.isfinite(result.price) else None
        # With sums a pass is dear, and what is too slow by itself seldom promises anything.
        fastest = oracle.fastest() if reach is None or not cells.network.images else None
        alive = []
        for v, size in enumerate(cells.sizes):
            which = np.ones(size, dtype=bool) if fastest is None else fastest[v] <= self.problem.ceiling_ms
            if reach is not None:
                which &= reach[v] > self._threshold
            alive.append(which)
        return left_of(network, cells, alive)

    def _try_all(self, network: Network) -> None:
        count = len(self.problem.groups)
        grids = [variable.grid for variable in network.variables[:count]]
        numbers = np.arange(math.prod(len(grid) for grid in grids))
        combinations = np.empty((len(numbers), count), dtype=np.int64)
        for g, grid in enumerate(grids):
            numbers, digit = np.divmod(numbers, len(grid))
            combinations[:, g] = grid[digit]
        values = np.zeros(len(combinations))
        for g, variable in enumerate(network.variables[:count]):
            values += variable.values[np.searchsorted(variable.grid, combinations[:, g])]
        promising = np.flatnonzero(values > self._threshold)
        promising = promising[np.argsort(-values[promising], kind="stable")]
        for part in np.array_split(promising, len(promising) // 4096 + 1):
            first = self.problem.first_within(combinations[part])
            if first is not None:
                best = combinations[part[first]]
                point = self.search.indices(best)
                self._offer((point, self.search.value(point)))
                return


def _split(network: Network, oracle: Oracle, result: DualResult) -> list[Network]:
    """Cut one group's widths in two, where the choices on either side of the budget disagree most."""
    count = len(network.problem.groups)
    coarse = oracle.cells.network
    sides = [[coarse.variables[g].grid[choice.points[g]] for g in range(count)] for choice in result.path[-2:]]
    apart = np.abs(np.array(sides[0]) - np.array(sides[-1])) / [coarse.variables[g].grid[-1] for g in range(count)]
    sizes = np.array([len(variable.grid) for variable in network.variables[:count]])
    apart[sizes < 2] = -1.0
    g = int(np.argmax(apart))
    if apart[g] <= 0.0:
        g = int(np.argmax(sizes))
        middle = int(sizes[g]) // 2
    else:
        between = (sides[0][g] + sides[-1][g]) / 2.0
        middle = int(np.searchsorted(network.variables[g].grid, between, side="right"))
        middle = min(max(middle, 1), int(sizes[g]) - 1)
    every = [np.arange(len(variable.grid)) for variable in network.variables]
    parts = (np.arange(middle), np.arange(middle, sizes[g]))
    return [restrict(network, [*every[:g], part, *every[g + 1 :]]) for part in parts]
