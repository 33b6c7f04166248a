"""The Lagrangian dual: the certificate, and the widths it suggests.

    D(lambda) = max_k sum_g V_g(k_g) - lambda (T(k) - budget)

is at least the best importance for every lambda >= 0, exact or optimistic T and V alike. It is convex,
and every evaluation gives a line that supports it, so the least of it lies where two lines cross.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from halp_iee.solve.eliminate import Elimination
from halp_iee.solve.network import Cells, Network
from halp_iee.solve.order import Order

_ITERATIONS = 50
_STEPS = (1.02, 1.1, 1.5, 4.0, 20.0)
"""By how much the price is changed, one after the other, until it has been on both sides of the budget."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One minimiser over cells: its cells, the groups' best widths in them, its value and latency (optimistic where
    cells are wide)."""

    price: float
    cells: np.ndarray
    widths: np.ndarray
    value: float
    latency_ms: float


@dataclass(frozen=True, eq=False)
class DualResult:
    """The least D found, the price lambda (importance a ms) that gave it, and the choices on the way.

    ``bound`` is -inf when even the least latency is over the budget: then nothing is feasible. ``least_ms`` is a lower
    bound on the latency where it was looked for, else -inf.
    """

    bound: float
    price: float
    path: tuple[Choice, ...]
    least_ms: float


class Oracle:
    """Minimises price * latency - value over one set of cells."""

    def __init__(self, cells: Cells, order: Order, cap: int) -> None:
        self.cells = cells
        self.network = cells.network
        scopes = cells.network.scopes
        self._pairs = [scope for scope in scopes if len(scope) == 2]
        self.elimination = Elimination(cells, scopes, order, cap)

    def tables(self, price: float) -> list[np.ndarray]:
        """The tables whose sum is to be minimised; price inf means latency alone."""
        alone = []
        for v, start in enumerate(self.cells.starts):
            table = self._alone(v, price)
            alone.append(np.minimum.reduceat(table, start) if len(start) < len(table) else table)
        pairs = [self.cells.together_ms[scope] for scope in self._pairs]
        return alone + (pairs if math.isinf(price) else [price * table for table in pairs])

    def _alone(self, v: int, price: float) -> np.ndarray:
        alone_ms = self.cells.alone_ms[v]
        return alone_ms if math.isinf(price) else price * alone_ms - self.network.variables[v].values

    def choose(self, price: float) -> tuple[float, Choice]:
        """The least sum, without ``constant_ms``, and a choice that reaches it."""
        least, cells = self.elimination.minimise(self.tables(price))
        variables = self.network.variables
        widths = np.zeros(len(self.network.problem.groups), dtype=np.int64)
        value, latency_ms = 0.0, self.network.constant_ms
        for v, cell in enumerate(cells):
            first, stop = self.cells.starts[v][cell], self.cells.last(v)[cell] + 1
            point = first + int(np.argmin(self._alone(v, price)[first:stop]))
            if v < len(widths):
                widths[v] = variables[v].grid[point]
            value += float(variables[v].values[point])
            latency_ms += float(self.cells.alone_ms[v][point])
        for scope, table in self.cells.together_ms.items():
            latency_ms += float(table[tuple(cells[v] for v in scope)])
        return least, Choice(price, cells, widths, value, latency_ms)

    def reach(self, price: float, budget_ms: float) -> list[np.ndarray]:
        """Per variable and cell, a bound on the importance of any widths within the budget that use it."""
        marginals = self.elimination.marginals(self.tables(price))
        return [price * (budget_ms - self.network.constant_ms) - least for least in marginals]

    def fastest(self) -> list[np.ndarray]:
        """Per variable and cell, the least latency in ms of any widths that use it."""
        marginals = self.elimination.marginals(self.tables(math.inf))
        return [self.network.constant_ms + least for least in marginals]


class Chooser(Protocol):
    """What minimises price * latency - value over the widths of a network, or bounds that from below."""

    @property
    def network(self) -> Network: ...

    def choose(self, price: float) -> tuple[float, Choice]: ...


def minimise_dual(
    oracle: Chooser,
    budget_ms: float,
    start: float | None = None,
    slack: float = 1e-10,
    between: tuple[float, float] = (0.0, math.inf),
) -> DualResult:
    """Find the price at which D is least.

    Args:
        oracle: gives D at a price.
        start: a price near which it lies; with a good one some evaluations are saved.
        slack: share of D by which what is found may be over the least.
        between: the prices to look at; with narrower ones than all, ``start`` lies between them, and where the least is
            at an end of them, the price given back is that end.
    """
    constant_ms = oracle.network.constant_ms
    path: list[Choice] = []
    bound, best_price = float(sum(variable.values[-1] for variable in oracle.network.variables)), 0.0

    def dual(price: float) -> tuple[float, Choice]:
        nonlocal bound, best_price
        least, choice = oracle.choose(price)
        found = price * (budget_ms - constant_ms) - least
        path.append(choice)
        if found < bound:
            bound, best_price = found, price
        return found, choice

    cheap: Choice | None = None
    rich: Choice | None = None
    if start is not None and 0.0 < start < math.inf:
        price = start
        for step in _STEPS:
            _, choice = dual(price)
            if choice.latency_ms > budget_ms:
                rich, end = choice, between[1]
                price = min(price * step, end)
            else:
                cheap, end = choice, between[0]
                price = max(price / step, end)
            if cheap is not None and rich is not None:
                break
            if choice.price == end:
                return DualResult(bound, end, tuple(path), -math.inf)
    if between != (0.0, math.inf) and (cheap is None or rich is None):
        return DualResult(bound, best_price, tuple(path), -math.inf)
    least_ms = -math.inf
    if cheap is None:
        least, cheap = oracle.choose(math.inf)
        least_ms = constant_ms + least
        if least_ms > budget_ms:
            return DualResult(-math.inf, math.inf, (cheap,), least_ms)
        path.insert(0, cheap)
    if rich is None:
        _, rich = dual(0.0)
        if rich.latency_ms <= budget_ms:
            return DualResult(bound, best_price, tuple(path), least_ms)
    for _ in range(_ITERATIONS):
        spread = rich.latency_ms - cheap.latency_ms
        if spread <= 0.0 or rich.value <= cheap.value:
            break
        price = (rich.value - cheap.value) / spread
        crossing = rich.value - price * (rich.latency_ms - budget_ms)
        found, choice = dual(price)
        if found <= crossing + slack * max(abs(crossing), abs(found)):
            break
        if choice.latency_ms > budget_ms:
            rich = choice
        else:
            cheap = choice
    return DualResult(bound, best_price, tuple(path), least_ms)
