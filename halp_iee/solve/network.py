"""The problem as a factor graph in which every latency touches at most two variables.

A layer costs T(c_in, c_out), so it couples two widths. Where an axis is the sum of several groups
(concatenation), that sum becomes a variable of its own, tied to its parts by relations ``s = a + b``;
sums that contain one another share their parts, so the prefix sums of a DenseNet form a chain and the
graph stays narrow.

For large widths the variables are coarsened to *cells*, runs of neighbouring widths. A cell stands for
the best that anything in it can do, so every optimum over cells bounds the exact one from the right side.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np

from halp_iee.solve.problem import Axis, LayerTerm, Problem


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
        images: (variable, its image). An image is a variable equal to another, for tables in which that may be
            coarse while it is fine elsewhere.
    """

    problem: Problem
    variables: tuple[Variable, ...]
    latencies: dict[tuple[int, ...], np.ndarray]
    relations: tuple[Relation, ...]
    constant_ms: float
    images: tuple[tuple[int, int], ...] = ()

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
    variables = [Variable(group.widths, group.values, ((index, 1),)) for index, group in enumerate(problem.groups)]
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
    tables: dict[Hashable, np.ndarray] = {}

    def tabulate(layer: LayerTerm, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        if layer.alike is None:
            return layer.ms(c_in, c_out)
        key = (layer.alike, c_in.shape, c_in.tobytes(), c_out.shape, c_out.tobytes())
        if key not in tables:
            tables[key] = layer.ms(c_in, c_out)
        return tables[key]

    for layer in problem.layers:
        left, c_in = resolve(layer.c_in)
        right, c_out = resolve(layer.c_out)
        scope: tuple[int, ...]
        if left is None or right is None or left == right:
            scope = tuple({v for v in (left, right) if v is not None})
            table = np.broadcast_to(tabulate(layer, c_in, c_out), (max(len(c_in), len(c_out)),))
        else:
            scope = (left, right)
            table = np.broadcast_to(tabulate(layer, c_in[:, None], c_out[None, :]), (len(c_in), len(c_out)))
            if left > right:
                scope, table = (right, left), table.T
        known = latencies.get(scope)
        latencies[scope] = np.asarray(table, dtype=np.float64) if known is None else known + table
    return Network(problem, tuple(variables), latencies, tuple(relations), problem.fixed_ms)


def _sums(problem: Problem, variables: list[Variable]) -> tuple[dict[frozenset[tuple[int, int]], int], list[Relation]]:
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


def loosen(network: Network, spare_ms: float) -> Network:
    """The same without the latencies that hardly couple two parts of sums (a layout that depends on both).

    They make the eliminations wide for little. They are replaced by a sum of two latencies of one width that is nowhere
    above them, those that lose least first, while all lose no more than ``spare_ms`` on average over the widths.
    """
    tied = network.in_relations
    lost = []
    for scope, table in network.latencies.items():
        if len(scope) == 2 and tied.issuperset(scope):
            second = table.min(axis=0)
            first = (table - second).min(axis=1)
            lost.append((float((table - second - first[:, None]).mean()), scope, (first, second)))
    latencies = dict(network.latencies)
    for loss_ms, scope, apart in sorted(lost, key=lambda one: one[:2]):
        spare_ms -= loss_ms
        if spare_ms < 0.0:
            break
        del latencies[scope]
        for v, part in zip(scope, apart, strict=True):
            latencies[(v,)] = latencies.get((v,), 0.0) + part
    return replace(network, latencies=latencies)


def with_images(network: Network) -> Network:
    """The same with an image of every sum, which takes its place in the latencies of two widths.

    A latency is nearly constant over some runs of the sum, but what the sum is made of has to be told exactly: an
    error of one run a part adds up.
    """
    totals = {relation.total for relation in network.relations}
    coupled = sorted(totals & {v for scope in network.latencies if len(scope) == 2 for v in scope})
    count = len(network.variables)
    image = {v: count + i for i, v in enumerate(coupled)}
    extra = tuple(
        Variable(network.variables[v].grid, np.zeros(len(network.variables[v].grid)), network.variables[v].members)
        for v in coupled
    )
    latencies: dict[tuple[int, ...], np.ndarray] = {s: t for s, t in network.latencies.items() if len(s) == 1}
    for scope, table in network.latencies.items():
        if len(scope) == 2:
            left, right = (image.get(v, v) for v in scope)
            latencies[(left, right) if left < right else (right, left)] = table if left < right else table.T
    images = tuple(image.items())
    variables = network.variables + extra
    return Network(network.problem, variables, latencies, network.relations, network.constant_ms, images)


def sample(network: Network, most: int) -> Network:
    """The network with about ``most`` widths of every group, and the sums that they make: a look, but no bound."""
    kept = []
    for variable in network.variables[: len(network.problem.groups)]:
        starts = cell_starts(variable, most)
        kept.append(np.append(starts[1:], len(variable.grid)) - 1)
    channels = [variable.grid[index] for variable, index in zip(network.variables, kept, strict=False)]
    for relation in network.relations:  # in the order of their totals
        total = relation.per_a * channels[relation.a][:, None] + relation.per_b * channels[relation.b]
        channels.append(np.intersect1d(total, network.variables[relation.total].grid))
        kept.append(np.searchsorted(network.variables[relation.total].grid, channels[-1]))
    return restrict(network, kept)


@dataclass(frozen=True, eq=False)
class Cells:
    """The network with each variable's grid cut into runs.

    Attributes:
        starts: per variable, index into its grid at which each cell begins; the first is 0.
        alone_ms: per variable, what its own width costs, on the full grid.
        together_ms: pair of variables -> the least of what the pair costs beyond that, a box of cells.
    """

    network: Network
    starts: tuple[np.ndarray, ...]
    alone_ms: tuple[np.ndarray, ...]
    together_ms: dict[tuple[int, ...], np.ndarray]

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

    def image(self, variable: int, image: int) -> np.ndarray:
        """For every cell of a variable, the cell of its image that it lies in."""
        return np.searchsorted(self.starts[image], self.starts[variable], side="right") - 1

    def channels(self, variable: int, per: int) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest ``per * grid`` of each cell."""
        grid = self.network.variables[variable].grid
        return per * grid[self.starts[variable]], per * grid[self.last(variable)]


def cut(network: Network, starts: tuple[np.ndarray, ...], reference: np.ndarray | None = None) -> Cells:
    """Cells that begin at the given indices of each variable's grid.

    The least latency of a box is far below that of its corner where the table is steep. So each pair's table
    is first split around ``reference`` (r, s), a choice of grid indices,

        T(i, j) = T(i, s) + T(r, j) - T(r, s) + cross(i, j),

    which changes no sum. The first three depend on one width, where a cell is resolved exactly, and the rest
    vanishes near the reference. By default it is the largest widths.
    """
    alone = [np.zeros(len(variable.grid)) for variable in network.variables]
    together = {}
    # One piece of memory for all the large tables: asking the system for it takes longer than the sums.
    room = np.empty(max((table.size for scope, table in network.latencies.items() if len(scope) == 2), default=0))
    for scope, table in network.latencies.items():
        if len(scope) == 1:
            alone[scope[0]] = alone[scope[0]] + table
            continue
        least = table
        if any(len(starts[v]) < len(network.variables[v].grid) for v in scope):
            r, s = (-1, -1) if reference is None else (int(reference[v]) for v in scope)
            beside = table[r, :] - table[r, s]
            alone[scope[0]] = alone[scope[0]] + table[:, s]
            alone[scope[1]] = alone[scope[1]] + beside
            least = np.subtract(table, table[:, s, None], out=room[: table.size].reshape(table.shape))
            least -= beside
        for axis, v in enumerate(scope):
            if len(starts[v]) < least.shape[axis]:
                least = np.minimum.reduceat(least, starts[v], axis=axis)
        together[scope] = least
    for v, image in network.images:
        alone[v] = alone[v] + alone[image]
        alone[image] = np.zeros(len(network.variables[image].grid))
    for relation in reversed(network.relations):
        a, b, total = relation.a, relation.b, relation.total
        if len(starts[total]) == len(network.variables[total].grid):
            continue
        slope = _slope(network.variables[total].grid, alone[total], None if reference is None else reference[total])
        alone[total] = alone[total] - slope * network.variables[total].grid
        alone[a] = alone[a] + slope * relation.per_a * network.variables[a].grid
        alone[b] = alone[b] + slope * relation.per_b * network.variables[b].grid
    return Cells(network, starts, tuple(alone), together)


def _slope(grid: np.ndarray, latency_ms: np.ndarray, near: int | None) -> float:
    """Milliseconds a channel of the line through ``latency_ms``, fitted around index ``near``."""
    middle = float(grid[-1 if near is None else near])
    spread = max(64.0, 0.25 * middle)
    x = grid - middle
    weight = 1.0 / (1.0 + (x / spread) ** 2)
    mean_x, mean_y = np.average(x, weights=weight), np.average(latency_ms, weights=weight)
    away = x - mean_x
    spread_x = float((weight * away**2).sum())
    return float((weight * away * (latency_ms - mean_y)).sum()) / spread_x if spread_x > 0.0 else 0.0


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


def left_of(network: Network, cells: Cells, alive: list[np.ndarray]) -> Network | None:
    """A network with only the widths in the cells that are alive, of it or its images; None where none are left.

    Args:
        cells: of ``network``, or of ``with_images(network)``.
        alive: per variable of the cells' network, which of its cells are.
    """
    kept = [cells.members(v, np.flatnonzero(which)) for v, which in enumerate(alive)]
    for v, image in cells.network.images:
        kept[v] = np.intersect1d(kept[v], kept[image], assume_unique=True)
    if not all(len(index) for index in kept):
        return None
    return restrict(network, kept[: len(network.variables)])


_FINE_FROM = 48
"""Fewer cells than this are too few to give half of them to one place: they would all mark changes of length."""


def cell_starts(variable: Variable, most: int, near: int | None = None) -> np.ndarray:
    """At most about ``most`` cells that end at multiples of powers of two, as latency staircases do.

    Half of them are even, and half lie around the grid index ``near``, finest there; without it all are even.
    """
    grid = variable.grid
    if len(grid) <= most:
        return np.arange(len(grid))
    if near is None or most < _FINE_FROM:
        return _blocks(grid, most, np.ones(len(grid)))
    away = np.abs(grid - grid[near]) + 1.0
    return np.union1d(_blocks(grid, most // 2, np.ones(len(grid))), _blocks(grid, most // 2, away))


def _blocks(grid: np.ndarray, most: int, coarseness: np.ndarray) -> np.ndarray:
    """Where runs begin whose lengths are powers of two, in proportion to ``coarseness``."""
    # Blocks of that many channels would already be too many, or nearly so.
    longest = max(1.0, 0.25 * float((coarseness.max() / coarseness).sum()) / most)
    while True:
        longest *= 1.5
        length = np.exp2(np.floor(np.log2(np.maximum(1.0, longest * coarseness / coarseness.max()))))
        block = np.ceil(grid / length)
        starts = np.flatnonzero((np.diff(block, prepend=-1.0) != 0) | (np.diff(length, prepend=-1.0) != 0))
        if len(starts) <= most:
            return starts
