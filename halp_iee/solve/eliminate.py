"""Exact minimisation of a sum of tables, one variable at a time (min-plus bucket elimination).

A plan is made once: at each step the variable whose elimination makes the smallest table goes next
(greedy min-weight order). A variable that is tied to two others by a sum need not be enumerated beside
them: it is replaced by what the two others leave open. Where a table would grow over ``cap`` entries,
the step is split into several smaller ones that are minimised apart (mini-buckets): the result is
then a lower bound on the minimum, which is the side that a bound on importance needs.

Bucket elimination and mini-buckets: R. Dechter, Artificial Intelligence 113 (1999); R. Dechter and
I. Rish, Journal of the ACM 50 (2003).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from halp_iee.solve.network import Cells, Relation

Scope = tuple[int, ...]


def _joined(
    v: int, live: Mapping[int, Scope], relations: Mapping[int, Relation], sizes: Sequence[int]
) -> tuple[int, int, set[int]]:
    """Entries of the table that joins all that touches ``v``, of its substitution, and the variables left."""
    others = {u for scope in live.values() if v in scope for u in scope}
    tied = [{r.a, r.b, r.total} for r in relations.values() if v in (r.a, r.b, r.total)]
    for variables in tied[1:]:
        others |= variables
    others.discard(v)
    own = math.prod(sizes[u] for u in others) * sizes[v]
    if not tied:
        return own, 0, others
    others |= tied[0] - {v}
    return own, math.prod(sizes[u] for u in others), others


@dataclass(frozen=True)
class Order:
    """Which variable to eliminate when.

    Attributes:
        variables: in order of elimination.
        joins: per step, the variables of the joint table; and of its substitution, empty without one.
    """

    variables: tuple[int, ...]
    joins: tuple[tuple[frozenset[int], frozenset[int]], ...]

    def work(self, sizes: Sequence[int]) -> int:
        """Entries of all tables of one pass, for variables of these sizes."""
        return sum(
            math.prod(sizes[u] for u in joint) + (math.prod(sizes[u] for u in left) if left else 0)
            for joint, left in self.joins
        )


def elimination_order(sizes: Sequence[int], scopes: Sequence[Scope], relations: Sequence[Relation]) -> Order:
    """Greedy: the variable whose joint table is smallest goes next; ties by index."""
    live = dict(enumerate(scopes))
    ties = dict(enumerate(relations))
    weights: dict[int, int] = {}
    remaining = set(range(len(sizes)))
    stale = set(remaining)
    order, joins = [], []
    while remaining:
        for v in stale & remaining:
            own, substituted, _ = _joined(v, live, ties, sizes)
            weights[v] = own + substituted
        v = min(remaining, key=lambda u: (weights[u], u))
        _, substituted, others = _joined(v, live, ties, sizes)
        tied = [key for key, r in ties.items() if v in (r.a, r.b, r.total)]
        gone = [slot for slot, scope in live.items() if v in scope]
        joint = {v}.union(*(live[slot] for slot in gone))
        for key in tied[1:]:
            joint |= {ties[key].a, ties[key].b, ties[key].total}
        order.append(v)
        joins.append((frozenset(joint), frozenset(others) if tied else frozenset()))
        for slot in gone:
            del live[slot]
        for key in tied:
            del ties[key]
        live[len(scopes) + v] = tuple(sorted(others))
        remaining.discard(v)
        stale = others
    return Order(tuple(order), tuple(joins))


@dataclass(frozen=True, eq=False)
class Bucket:
    """Tables that are joined and minimised over ``scope[0]``; ``slots`` say which; ``result`` where it goes.

    ``view``: per slot, the axis order and shape that align its table with ``scope``.
    ``pair``: the two variables that replace ``scope[0]`` by the relation, with the first cell of it that each
    pair of their cells can meet and how many; None for a plain minimum.
    """

    scope: Scope
    slots: tuple[int, ...]
    view: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    shape: tuple[int, ...]
    result: int
    result_scope: Scope
    pair: tuple[int, int, np.ndarray, np.ndarray] | None


class Elimination:
    """The plan for one set of cells.

    Attributes:
        exact: False where mini-buckets were needed; then ``minimise`` gives a lower bound.
        work: entries of all tables of one pass.
    """

    def __init__(self, cells: Cells, scopes: Sequence[Scope], order: Order, cap: int) -> None:
        self.sizes = cells.sizes
        self.exact = True
        self.work = 0
        self._steps: list[tuple[int, tuple[Bucket, ...]]] = []
        self._masks: dict[int, np.ndarray] = {}
        live = dict(enumerate(scopes))
        relations = dict(enumerate(cells.network.relations))
        for v in order.variables:
            self._eliminate(v, cells, live, relations, cap)

    def _eliminate(
        self, v: int, cells: Cells, live: dict[int, Scope], relations: dict[int, Relation], cap: int
    ) -> None:
        inside = [slot for slot, scope in live.items() if v in scope]
        tied = [key for key, r in relations.items() if v in (r.a, r.b, r.total)]
        own, substituted, _ = _joined(v, live, relations, self.sizes)
        ties = [relations.pop(key) for key in tied]
        if own + substituted <= cap:
            for relation in ties[1:]:
                slot = self._new_slot(live)
                live[slot] = (relation.a, relation.b, relation.total)
                self._masks[slot] = _mask(cells, relation)
                inside.append(slot)
            parts = [inside]
        else:
            # A relation minimised apart from the tables says nothing: it is left out.
            self.exact = False
            ties = []
            parts = []
            for slot in sorted(inside, key=lambda s: -math.prod(self.sizes[u] for u in live[s])):
                for part in parts:
                    joint = {v, *live[slot]}.union(*(live[s] for s in part))
                    if math.prod(self.sizes[u] for u in joint) <= cap:
                        part.append(slot)
                        break
                else:
                    parts.append([slot])
        buckets = []
        for part in parts:
            buckets.append(self._bucket(v, part, cells, live, ties[0] if ties else None))
            for slot in part:
                del live[slot]
            live[buckets[-1].result] = buckets[-1].result_scope
        self._steps.append((v, tuple(buckets)))

    def _new_slot(self, live: dict[int, Scope]) -> int:
        self._next = max(getattr(self, "_next", -1), max(live, default=-1)) + 1
        return self._next

    def _bucket(
        self, v: int, part: list[int], cells: Cells, live: dict[int, Scope], relation: Relation | None
    ) -> Bucket:
        others = sorted({u for slot in part for u in live[slot]} - {v})
        pair = None
        result_scope = tuple(others)
        if relation is not None:
            x, y = (u for u in (relation.a, relation.b, relation.total) if u != v)
            # The joint table needs x and y first so that the substitution can index them.
            others = [u for u in (x, y) if u in others] + [u for u in others if u not in (x, y)]
            first, count = _meet(cells, relation, v)
            pair = (x, y, first, count)
            result_scope = (x, y, *(u for u in others if u not in (x, y)))
            self.work += math.prod(self.sizes[u] for u in result_scope)
        scope = (v, *others)
        views = []
        for slot in part:
            source = live[slot]
            axes = tuple(source.index(u) for u in scope if u in source)
            views.append((axes, tuple(self.sizes[u] if u in source else 1 for u in scope)))
        shape = tuple(self.sizes[u] for u in scope)
        self.work += math.prod(shape)
        return Bucket(scope, tuple(part), tuple(views), shape, self._new_slot(live), result_scope, pair)

    def minimise(self, tables: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
        """Least sum of the tables, and a cell for every variable that reaches it.

        Args:
            tables: one a scope given at construction, in that order; entries may be +inf.
        """
        total, joints, _ = self._forward(tables)
        return total, self._trace_back(joints)

    def _forward(self, tables: Sequence[np.ndarray]) -> tuple[float, list[list[np.ndarray]], dict[int, np.ndarray]]:
        slots: dict[int, np.ndarray] = dict(enumerate(tables))
        slots.update(self._masks)
        joints: list[list[np.ndarray]] = []
        total = 0.0
        for _, buckets in self._steps:
            joints.append([])
            for bucket in buckets:
                joint = _join(bucket, slots)
                joints[-1].append(joint)
                result = joint.min(axis=0) if bucket.pair is None else _substitute(bucket, joint)
                slots[bucket.result] = result
                if not bucket.result_scope:
                    total += float(result)
        return total, joints, slots

    def marginals(self, tables: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For every cell of every variable, the least sum of the tables with that cell chosen.

        The steps are walked back: what lies outside a bucket is passed from the bucket that took its
        result, whose own total less that result it is. Only for exact plans.
        """
        marginals = [np.zeros(0)] * len(self.sizes)
        for bucket, whole, _ in self._walk_back(tables)[0]:
            marginals[bucket.scope[0]] = whole.reshape(len(whole), -1).min(axis=1)
        return marginals

    def wholes(
        self, tables: Sequence[np.ndarray]
    ) -> tuple[list[tuple[Bucket, np.ndarray, np.ndarray]], float, dict[int, np.ndarray]]:
        """Every step in turn with the least sum of the tables at every entry of its joint table, and what its result
        misses of them; the least of all; and what every step handed on. With a substitution the entries are those
        of its result. Only for exact plans.
        """
        steps, total, slots = self._walk_back(tables)
        found = [
            (bucket, whole if bucket.pair is None else slots[bucket.result] + beyond, beyond)
            for bucket, whole, beyond in reversed(steps)
        ]
        return found, total, slots

    def _walk_back(
        self, tables: Sequence[np.ndarray]
    ) -> tuple[list[tuple[Bucket, np.ndarray, np.ndarray]], float, dict[int, np.ndarray]]:
        """Per step, the last first: the least sums at its joint table's entries, and what its result misses of them."""
        assert self.exact
        total, joints, slots = self._forward(tables)
        outside: dict[int, np.ndarray] = {}
        scopes = {bucket.result: bucket.result_scope for _, (bucket,) in self._steps}
        steps = []
        for (_, (bucket,)), (joint,) in zip(reversed(self._steps), reversed(joints), strict=True):
            if bucket.result_scope:
                beyond = outside.pop(bucket.result)
            else:
                beyond = np.asarray(total - float(slots[bucket.result]))
            if bucket.pair is None:
                whole = joint + beyond
            else:
                whole = joint + _spread(bucket, beyond, joint.shape)
            steps.append((bucket, whole, beyond))
            for slot in bucket.slots:
                scope = scopes.get(slot)
                if not scope:
                    continue
                away = tuple(axis for axis, u in enumerate(bucket.scope) if u not in scope)
                left = [u for u in bucket.scope if u in scope]
                least = whole.min(axis=away).transpose([left.index(u) for u in scope])
                finite = np.isfinite(slots[slot])
                outside[slot] = np.where(finite, least - np.where(finite, slots[slot], 0.0), np.inf)
        return steps, total, slots

    def _trace_back(self, joints: list[list[np.ndarray]]) -> np.ndarray:
        chosen = np.zeros(len(self.sizes), dtype=np.int64)
        for (v, buckets), tables in zip(reversed(self._steps), reversed(joints), strict=True):
            column = np.zeros(self.sizes[v])
            for bucket, joint in zip(buckets, tables, strict=True):
                column = column + joint[(slice(None), *(int(chosen[u]) for u in bucket.scope[1:]))]
                if bucket.pair is not None:
                    x, y, first, count = bucket.pair
                    start = first[chosen[x], chosen[y]]
                    outside = np.ones(len(column), dtype=bool)
                    outside[start : start + count[chosen[x], chosen[y]]] = False
                    column[outside] = np.inf
            chosen[v] = int(np.argmin(column))
        return chosen


def _join(bucket: Bucket, slots: dict[int, np.ndarray]) -> np.ndarray:
    joint: np.ndarray | None = None
    for slot, (axes, shape) in zip(bucket.slots, bucket.view, strict=True):
        table = slots[slot].transpose(axes).reshape(shape)
        if joint is None:
            joint = np.broadcast_to(table, bucket.shape)
        elif joint.flags.writeable:
            joint += table
        else:
            joint = joint + table
    return np.zeros(bucket.shape) if joint is None else joint


def _substitute(bucket: Bucket, joint: np.ndarray) -> np.ndarray:
    """min over the cells of v that x and y can meet, for every (x, y, others)."""
    assert bucket.pair is not None
    x, y, first, count = bucket.pair
    rows = np.arange(first.shape[0])[:, None]
    columns = np.arange(first.shape[1])[None, :]
    index: list[np.ndarray] = [first]
    if x in bucket.scope:
        index.append(np.broadcast_to(rows, first.shape))
    if y in bucket.scope:
        index.append(np.broadcast_to(columns, first.shape))
    last = joint.shape[0] - 1
    tail = (1,) * (len(bucket.result_scope) - 2)
    result = np.full((*first.shape, *joint.shape[len(index) :]), np.inf)
    for offset in range(int(count.max(initial=0))):
        index[0] = np.minimum(first + offset, last)
        reached = joint[tuple(index)]
        np.minimum(result, np.where((count > offset).reshape(*first.shape, *tail), reached, np.inf), out=result)
    return result


def _spread(bucket: Bucket, beyond: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The reverse of ``_substitute``: least of ``beyond`` over the (x, y) that leave each cell of v open."""
    assert bucket.pair is not None
    x, y, first, count = bucket.pair
    result = np.full(shape, np.inf)
    rows = np.broadcast_to(np.arange(first.shape[0])[:, None], first.shape)
    columns = np.broadcast_to(np.arange(first.shape[1])[None, :], first.shape)
    for offset in range(int(count.max(initial=0))):
        open_ = count > offset
        index: list[np.ndarray] = [(first + offset)[open_]]
        if x in bucket.scope:
            index.append(rows[open_])
        if y in bucket.scope:
            index.append(columns[open_])
        np.minimum.at(result, tuple(index), beyond[open_])
    return result


def _meet(cells: Cells, relation: Relation, v: int) -> tuple[np.ndarray, np.ndarray]:
    """For the cells of the two variables other than ``v``: the first cell of ``v`` that some pair of their
    entries leaves open, and how many (they are neighbours)."""
    ends = {
        u: cells.channels(u, per)
        for u, per in ((relation.a, relation.per_a), (relation.b, relation.per_b), (relation.total, 1))
    }
    x, y = (u for u in (relation.a, relation.b, relation.total) if u != v)
    if v == relation.total:
        low = ends[x][0][:, None] + ends[y][0][None, :]
        high = ends[x][1][:, None] + ends[y][1][None, :]
    else:  # v = total - other; y is the total
        low = ends[y][0][None, :] - ends[x][1][:, None]
        high = ends[y][1][None, :] - ends[x][0][:, None]
    first = np.searchsorted(ends[v][1], low, side="left")
    stop = np.searchsorted(ends[v][0], high, side="right")
    return first, np.maximum(stop - first, 0)


def _mask(cells: Cells, relation: Relation) -> np.ndarray:
    """0 where cells of (a, b, total) can meet, else +inf."""
    first, count = _meet(cells, relation, relation.total)
    total = np.arange(cells.sizes[relation.total])
    inside = (total >= first[..., None]) & (total < (first + count)[..., None])
    return np.where(inside, 0.0, np.inf)
