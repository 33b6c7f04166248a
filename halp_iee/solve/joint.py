"""The default solver: every layer's true T(c_in, c_out), with a proof of how good the answer is.

1. The Lagrangian dual bounds the importance; it is solved by dynamic programming over coarse cells of the widths that
   are no dead ends at the prices expected, and made exact at few prices by ever finer cells (``relax``, ``thin``). The
   widths on its path, mended and improved by local moves, give answers.
2. While bound and answer are apart: every width that cannot be worth more than the answer at the dual's price is ruled
   out for good; what is left is looked through with its latencies (``labels``); where that stalls, the widths of one
   group are split in two (branch and bound, best first); where few combinations are left, they are all tried.

Work is counted in table entries, not in seconds, so the answer does not depend on the machine's load.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np

from halp_iee.solve.dual import DualResult, Oracle
from halp_iee.solve.halp import solve_halp
from halp_iee.solve.labels import TooManyLabelsError, closable, close
from halp_iee.solve.network import Network, compile_network, left_of, restrict
from halp_iee.solve.problem import Problem
from halp_iee.solve.relax import Sharp, core, relax, scout, wide
from halp_iee.solve.search import Search

_TOTAL_WORK = 800_000_000
"""Table entries after which no further node is opened: about three seconds."""
_NODE_WORK = 25_000
"""What a node costs besides its passes, a variable, in the same measure."""
_PASS_WORK = 3_000_000
"""Table entries of one pass of the elimination: about 15 ms."""
_FINE_WORK = 100_000
"""The same a variable, once there is an answer to be fine around."""
_FIRST_SUM_WORK = 12_000_000
_SUM_WORK = 50_000_000
"""Table entries of one pass where sums have images: most of them are added up in cache."""
_SHARE = 0.05
"""Share of the tolerance to which the least of the dual is found."""
_NEAR = 0.2
"""How far from the budget a choice may be, as a share of it, to be worth mending."""
_LABELS = (500, 2000)
"""Labels a message may hold in a first pass and, where that found something better, in a second."""
_FIRST = 2
"""Guesses that are made answers before there is any bound."""
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


def bound_importance(problem: Problem, network: Network | None = None, near: np.ndarray | None = None) -> float:
    """An upper bound on the importance of any widths within the budget."""
    result = relax(network or compile_network(problem), problem.ceiling_ms, near).result
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
        between = (branch.value, bound * (1.0 + _EPSILON))
        branch.offer_widths(solve_halp(problem, between=between, maybe_within=branch.search.maybe_within))
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
        ceiling_ms = self.problem.ceiling_ms
        self.work += _NODE_WORK * len(network.variables)
        result = self._scouted(network, above, tolerance) if self.price is None else None
        if result is None:
            relaxed = relax(network, ceiling_ms, near, pass_work, self.price)
            result = relaxed.result
            self.work += relaxed.work
            if min(above, result.bound) <= self._threshold:
                return []
            self._try_path(result, last=1 if self.point is not None else 3)
            open_ = math.isfinite(result.bound) and not self._within(min(above, result.bound), tolerance)
            if open_ and 0.0 < result.price < math.inf and not relaxed.oracle.cells.exact:
                sharp = Sharp(network, self.search, ceiling_ms, pass_work, relaxed.network, relaxed.prices)
                finer = self._sharpen(sharp, result.price, above, tolerance)
                result = finer if finer.bound < result.bound else result
        priced = math.isfinite(result.bound) and 0.0 < result.price < math.inf
        if math.isfinite(result.bound):
            self.price = result.price
        bound = min(above, result.bound)
        if bound <= self._threshold:
            return []
        if self._within(bound, tolerance):
            return [(bound, network)]
        child: Network | None = network
        if priced:
            near = None if self.point is None else self.search.widths(self.point)
            child, oracle, work = core(
                network, result.price, result.bound, self._threshold, ceiling_ms, pass_work, near
            )
            self.work += work
            if child is None or oracle is None:
                return []
            bound = self._close(oracle, result.price, bound, tolerance)
            if bound <= self._threshold:
                return []
            if self._within(bound, tolerance):
                return [(bound, network)]
            child = self._fast_enough(child, oracle)
        if child is None:
            return []
        count = len(self.problem.groups)
        if math.prod(len(variable.grid) for variable in child.variables[:count]) <= self.enumerate_at:
            self._try_all(child)
            return []
        if sum(len(v.grid) for v in child.variables) < 0.8 * sum(len(v.grid) for v in network.variables):
            return [(bound, child)]
        return [(bound, half) for half in _split(child, result)]

    def _scouted(self, network: Network, above: float, tolerance: float) -> DualResult | None:
        """The dual of a network too large for one pass, at the price that a guess suggests; None without one."""
        pass_work = _SUM_WORK // 4 if network.relations else _FINE_WORK * len(network.variables)
        if not wide(network, pass_work):
            return None
        guess = scout(network, self.search, self.problem.ceiling_ms)
        if guess is None:
            return None
        price, points, work = guess
        self.work += work
        sharp = Sharp(network, self.search, self.problem.ceiling_ms, pass_work)
        for point in points:
            sharp.lines.add(point)
        over = [abs(self.search.latency_ms(point) - self.problem.budget_ms) for point in points]
        for pick in np.argsort(over, kind="stable")[:_FIRST]:
            self._offer(self.search.improve(points[pick]))
        return self._sharpen(sharp, price, above, tolerance)

    def _sharpen(self, sharp: Sharp, price: float, above: float, tolerance: float) -> DualResult:
        """The dual over ever finer cells, until its bound or another is near enough to an answer."""
        if self.point is not None:
            sharp.lines.add(self.point)

        def enough(bound: float, point: np.ndarray) -> bool:
            if abs(self.search.latency_ms(point) / self.problem.budget_ms - 1.0) <= _NEAR:
                self._offer(self.search.improve(point))
            sharp.enough = self.value / (1.0 - tolerance)
            return self._within(min(above, bound), tolerance)

        sharp.enough = self.value / (1.0 - tolerance)
        found = sharp.minimise(price, enough, _SHARE * tolerance)
        self.work += sharp.work
        return found

    def _try_path(self, result: DualResult, last: int) -> None:
        """Answers from the last choices of the dual, which lie next to its least."""
        seen = set()
        for choice in result.path[: -last - 1 : -1]:
            raw = self.search.indices(choice.widths)
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

    def _close(self, oracle: Oracle, price: float, bound: float, tolerance: float) -> float:
        """The bound once what the dual leaves open is looked through with its latencies, and answers from there."""
        network = oracle.network
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

    def _fast_enough(self, network: Network, oracle: Oracle) -> Network | None:
        """The network without the cells that are too slow whatever goes with them; None when nothing is left."""
        # With sums a pass is dear, and what is too slow by itself seldom promises anything.
        if not oracle.elimination.exact or oracle.network.images:
            return network
        self.work += 4 * oracle.elimination.work
        return left_of(network, oracle.cells, [least <= self.problem.ceiling_ms for least in oracle.fastest()])

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


def _split(network: Network, result: DualResult) -> list[Network]:
    """Cut one group's widths in two, where the choices on either side of the budget disagree most."""
    count = len(network.problem.groups)
    sides = (result.path[-2:][0].widths, result.path[-1].widths)
    apart = np.abs(sides[0] - sides[1]) / [network.variables[g].grid[-1] for g in range(count)]
    sizes = np.array([len(variable.grid) for variable in network.variables[:count]])
    apart[sizes < 2] = -1.0
    g = int(np.argmax(apart))
    if apart[g] <= 0.0:
        g = int(np.argmax(sizes))
        middle = int(sizes[g]) // 2
    else:
        between = (sides[0][g] + sides[1][g]) / 2.0
        middle = int(np.searchsorted(network.variables[g].grid, between, side="right"))
        middle = min(max(middle, 1), int(sizes[g]) - 1)
    every = [np.arange(len(variable.grid)) for variable in network.variables]
    parts = (np.arange(middle), np.arange(middle, sizes[g]))
    return [restrict(network, [*every[:g], part, *every[g + 1 :]]) for part in parts]
