"""The problem as a factor graph in which every latency touches at most two variables.

A layer costs T(c_in, c_out), so it couples two widths. Where an axis is the sum of several groups
(concatenation), that sum becomes a variable of its own, tied to its parts by relations ``s = a + b``;
sums that contain one another share their parts, so the prefix sums of a DenseNet form a chain and the
graph stays narrow.

For large widths the variables are coarsened to *cells*, runs of neighbouring widths. A cell has the
largest value and the least latency of anything in it, so every optimum over cells bounds the exact
one from the right side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from halp_iee.solve.problem import Axis, Problem


@dataclass(frozen=True, eq=False)
class Variable:
    """A width to decide, or a sum of them.

    Attributes:
        grid: what it may be, rising: units for a group, channels for a sum. int64.
        values: importance kept at each; 0 for a sum. float64.
        members: (group, channels a unit) that it is the sum of.
    """

    grid: np.ndarray
    values: np.ndarray
    members: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Relation:
    """``variables[total] = per_a * variables[a] + per_b * variables[b]``."""

    a: int
    b: int
    total: int
    per_a: int
    per_b: int


@dataclass(frozen=True, eq=False)
class Network:
    """Variables (the groups first, in the problem's order), latencies over one or two of them, relations.

    Attributes:
        latencies: scope -> summed latency in ms on the full grids; scopes are rising tuples of one or
            two variables, the table has one axis each.
        constant_ms: what no variable changes.
    """

    problem: Problem
    variables: tuple[Variable, ...]
    latencies: dict[tuple[int, ...], np.ndarray]
    relations: tuple[Relation, ...]
    constant_ms: float

    @property
    def scopes(self) -> list[tuple[int, ...]]:
        """Every variable alone, then the pairs that share a latency."""
        pairs = [scope for scope in self.latencies if len(scope) == 2]
        alone: list[tuple[int, ...]] = [(v,) for v in range(len(self.variables))]
        return alone + pairs

    @property
    def in_relations(self) -> frozenset[int]:
        """Variables that take part in a sum."""
        return frozenset(v for r in self.relations for v in (r.a, r.b, r.total))


def compile_network(problem: Problem) -> Network:
    """Tabulate every layer over the admissible widths."""
    variables = [
        Variable(group.widths, group.values, ((index, 1),)) for index, group in enumerate(problem.groups)
    ]
    sums, relations = _sums(problem, variables)

    def resolve(axis: Axis) -> tuple[int | None, np.ndarray]:
        if not axis.terms:
            return None, np.array([axis.fixed], dtype=np.int64)
        if len(axis.terms) == 1:
            group, per = axis.terms[0]
            return group, axis.fixed + per * variables[group].grid
        variable = sums[frozenset(axis.terms)]
        return variable, axis.fixed + variables[variable].grid

    latencies: dict[tuple[int, ...], np.ndarray] = {}
    for layer in problem.layers:
        left, c_in = resolve(layer.c_in)
        right, c_out = resolve(layer.c_out)
        scope: tuple[int, ...]
        if left is None or right is None or left == right:
            scope = tuple({v for v in (left, right) if v is not None})
            table = np.broadcast_to(layer.ms(c_in, c_out), (max(len(c_in), len(c_out)),))
        else:
            scope = (left, right)
            table = np.broadcast_to(layer.ms(c_in[:, None], c_out[None, :]), (len(c_in), len(c_out)))
            if left > right:
                scope, table = (right, left), table.T
        known = latencies.get(scope)
        latencies[scope] = np.array(table, dtype=np.float64) if known is None else known + table
    return Network(problem, tuple(variables), latencies, tuple(relations), problem.fixed_ms)


def _sums(
    problem: Problem, variables: list[Variable]
) -> tuple[dict[frozenset[tuple[int, int]], int], list[Relation]]:
    """Add a variable for every sum that a layer needs, smallest first, sharing the parts."""
    needed: dict[frozenset[tuple[int, int]], tuple[tuple[int, int], ...]] = {}
    for layer in problem.layers:
        for axis in (layer.c_in, layer.c_out):
            if len(axis.terms) > 1:
                needed.setdefault(frozenset(axis.terms), axis.terms)
    known: dict[frozenset[tuple[int, int]], int] = {}
    relations: list[Relation] = []
    for terms in sorted(needed.values(), key=len):
        left = dict.fromkeys(terms)
        # Operands: the largest sums there are already, disjoint, then single groups.
        operands: list[tuple[int, int, tuple[tuple[int, int], ...]]] = []
        while True:
            inside = [part for part in known if part <= left.keys()]
            if not inside:
                break
            part = max(inside, key=len)
            operands.append((known[part], 1, tuple(term for term in left if term in part)))
            left = dict.fromkeys(term for term in left if term not in part)
        operands += [(group, per, ((group, per),)) for group, per in left]
        a, per_a, members = operands[0]
        for b, per_b, more in operands[1:]:
            members = members + more
            key = frozenset(members)
            if key not in known:
                reach = np.unique(per_a * variables[a].grid[:, None] + per_b * variables[b].grid[None, :])
                variables.append(Variable(reach, np.zeros(len(reach)), members))
                known[key] = len(variables) - 1
                relations.append(Relation(a, b, known[key], per_a, per_b))
            a, per_a = known[key], 1
    return known, relations


@dataclass(frozen=True, eq=False)
class Cells:
    """The network with each variable's grid cut into runs.

    Attributes:
        starts: per variable, index into its grid at which each cell begins; the first is 0.
        values: per variable, the most importance in each cell (0 for sums).
        latencies: scope -> the least latency in each box of cells, ms.
    """

    network: Network
    starts: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    latencies: dict[tuple[int, ...], np.ndarray]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(start) for start in self.starts)

    @property
    def exact(self) -> bool:
        """Whether every cell is a single width."""
        return all(
            len(start) == len(variable.grid)
            for start, variable in zip(self.starts, self.network.variables, strict=True)
        )

    def last(self, variable: int) -> np.ndarray:
        """Index into the grid of each cell's last entry."""
        start = self.starts[variable]
        return np.append(start[1:], len(self.network.variables[variable].grid)) - 1

    def members(self, variable: int, cells: np.ndarray) -> np.ndarray:
        """Indices into the grid of everything in the given cells."""
        ends = self.last(variable)
        runs = [np.arange(self.starts[variable][cell], ends[cell] + 1) for cell in cells]
        return np.concatenate(runs) if runs else np.zeros(0, dtype=np.int64)

    def channels(self, variable: int, per: int) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest ``per * grid`` of each cell."""
        grid = self.network.variables[variable].grid
        return per * grid[self.starts[variable]], per * grid[self.last(variable)]


def cut(network: Network, starts: tuple[np.ndarray, ...]) -> Cells:
    """Cells that begin at the given indices of each variable's grid."""
    values = []
    for start, variable in zip(starts, network.variables, strict=True):
        # Values never fall along a grid, so a cell's last is its largest.
        values.append(variable.values[np.append(start[1:], len(variable.grid)) - 1])
    latencies = {}
    for scope, table in network.latencies.items():
        least = table
        for axis, variable_index in enumerate(scope):
            start = starts[variable_index]
            if len(start) < least.shape[axis]:
                least = np.minimum.reduceat(least, start, axis=axis)
        latencies[scope] = least
    return Cells(network, starts, tuple(values), latencies)


def restrict(network: Network, kept: list[np.ndarray]) -> Network:
    """The network with only the given indices of each variable's grid."""
    variables = tuple(
        Variable(variable.grid[index], variable.values[index], variable.members)
        for variable, index in zip(network.variables, kept, strict=True)
    )
    latencies = {
        scope: np.ascontiguousarray(table[np.ix_(*(kept[v] for v in scope))])
        for scope, table in network.latencies.items()
    }
    return Network(network.problem, variables, latencies, network.relations, network.constant_ms)


def even_starts(variable: Variable, most: int) -> np.ndarray:
    """At most about ``most`` cells that end at multiples of a power of two, as latency staircases do."""
    grid = variable.grid
    if len(grid) <= most:
        return np.arange(len(grid))
    step = 1
    while True:
        step *= 2
        block = -(-grid // step)
        starts = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
        if len(starts) <= most:
            return starts
