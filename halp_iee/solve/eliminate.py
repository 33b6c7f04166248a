"""Exact minimisation of a sum of tables, one variable at a time (min-plus bucket elimination).

A plan is made once: at each step the variable whose elimination makes the smallest table goes next
(greedy min-weight order, ``order``). A variable that is tied to two others by a sum need not be enumerated
beside them: it is replaced by what the two others leave open; two that meet nowhere else are added up (``sums``);
an image, which stands for runs of another variable's widths, is replaced by that. Where a table would grow over
``cap`` entries, the step is split into several smaller ones that are minimised apart (mini-buckets): the result is
then a lower bound on the minimum, which is the side that a bound on importance needs.

Bucket elimination and mini-buckets: R. Dechter, Artificial Intelligence 113 (1999); R. Dechter and
I. Rish, Journal of the ACM 50 (2003).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from halp_iee.solve.network import Cells, Relation
from halp_iee.solve.order import MOST_AXES, Going, How, Live, Order, Scope
from halp_iee.solve.sums import Addition, meet


@dataclass(frozen=True, eq=False)
class Bucket:
    """Tables that are joined and minimised over ``scope[0]``; ``slots`` say which; ``result`` where it goes.

    ``view``: per slot, the axis order and shape that align its table with ``scope``.
    ``pair``: the two variables that replace ``scope[0]`` by the relation, with the first cell of it that each
    pair of their cells can meet and how many. ``phi``: for an image and what it is the image of, the cell of the
    first for each of the second's. ``addition``: how the bucket is added to the next one.
    """

    scope: Scope
    slots: tuple[int, ...]
    view: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    shape: tuple[int, ...]
    result: int
    result_scope: Scope
    how: How
    pair: tuple[int, int, np.ndarray, np.ndarray] | None
    phi: np.ndarray | None
    addition: Addition | None = None


class Elimination:
    """The plan for one set of cells.

    Attributes:
        exact: False where mini-buckets were needed; then ``minimise`` gives a lower bound.
        minima: whether every step is a minimum over tables or a substitution, with neither images nor sums.
        work: entries of all tables of one pass.
    """

    def __init__(self, cells: Cells, scopes: Sequence[Scope], order: Order, cap: int) -> None:
        self.sizes = cells.sizes
        self.exact = True
        self.minima = True
        self.work = 0
        self._cells, self._cap = cells, cap
        self._live = Live(scopes, cells.network.relations, cells.network.images)
        self._next = len(scopes)
        self._steps: list[tuple[int, tuple[Bucket, ...]]] = []
        self._masks: dict[int, np.ndarray] = {}
        self._gone: set[int] = set()
        for v in order.variables:
            self._eliminate(v)
        # Where a sum of two was split, its other part was not named.
        for v in range(len(self.sizes)):
            self._eliminate(v)
        del self._live, self._cells

    def _eliminate(self, v: int) -> None:
        if v in self._gone:
            return
        going = self._live.going(v)
        self._gone.add(v)
        work = going.work(self.sizes)
        if work > self._cap or len(going.joint | going.left) > MOST_AXES:
            self._split(v)
            return
        self.work += work
        self.minima &= going.how in ("plain", "relation")
        for mask in going.masked:
            slot = self._new_slot()
            if isinstance(mask, Relation):
                self._live.put(slot, (mask.a, mask.b, mask.total))
                self._masks[slot] = _mask(self._cells, mask)
            else:
                self._live.put(slot, mask)
                phi = self._cells.image(*mask)
                self._masks[slot] = np.where(phi[:, None] == np.arange(self.sizes[mask[1]]), 0.0, np.inf)
        buckets = [self._bucket(v, self._live.inside(v), going)]
        if going.how == "add":
            self._gone.add(going.partner)
            other = self._bucket(going.partner, self._live.inside(going.partner), None)
            relation = going.relation
            assert relation is not None
            context = sorted(going.left - {relation.total})
            addition = Addition.plan(self._cells, relation, v, going.partner, buckets[0].scope, other.scope, context)
            buckets = [replace(buckets[0], addition=addition, result_scope=addition.scope), other]
        self._steps.append((v, tuple(buckets)))
        self._live.remove(v, going)
        self._live.put(buckets[0].result, buckets[0].result_scope)

    def _split(self, v: int) -> None:
        """Mini-buckets. A relation or an image minimised apart from the tables says nothing: it is left out."""
        self.exact = False
        live = self._live
        parts: list[list[int]] = []
        for slot in sorted(live.inside(v), key=lambda s: -math.prod(self.sizes[u] for u in live.slots[s])):
            for part in parts:
                joint = {v, *live.slots[slot]}.union(*(live.slots[s] for s in part))
                if len(joint) <= MOST_AXES and math.prod(self.sizes[u] for u in joint) <= self._cap:
                    part.append(slot)
                    break
            else:
                parts.append([slot])
        buckets = tuple(self._bucket(v, part, None) for part in parts)
        self.work += sum(math.prod(bucket.shape) for bucket in buckets)
        self._steps.append((v, buckets))
        live.remove(v, Going("plain", frozenset(), frozenset()))
        for bucket in buckets:
            live.put(bucket.result, bucket.result_scope)

    def _new_slot(self) -> int:
        self._next += 1
        return self._next - 1

    def _bucket(self, v: int, part: list[int], going: Going | None) -> Bucket:
        scopes = self._live.slots
        others = sorted({u for slot in part for u in scopes[slot]} - {v})
        how = "plain" if going is None else going.how
        pair, phi = None, None
        result_scope = tuple(others)
        if going is not None and how == "relation":
            relation = going.relation
            assert relation is not None
            x, y = (u for u in (relation.a, relation.b, relation.total) if u != v)
            # The joint table needs x and y first so that the substitution can index them.
            others = [u for u in (x, y) if u in others] + [u for u in others if u not in (x, y)]
            first, count = meet(self._cells, relation, v)
            pair = (x, y, first, count)
            result_scope = (x, y, *(u for u in others if u not in (x, y)))
        elif going is not None and how in ("expand", "collapse"):
            result_scope = (going.partner, *others)
            phi = self._cells.image(going.partner, v) if how == "expand" else self._cells.image(v, going.partner)
        scope = (v, *others)
        views = []
        for slot in part:
            source = scopes[slot]
            axes = tuple(source.index(u) for u in scope if u in source)
            views.append((axes, tuple(self.sizes[u] if u in source else 1 for u in scope)))
        shape = tuple(self.sizes[u] for u in scope)
        return Bucket(scope, tuple(part), tuple(views), shape, self._new_slot(), result_scope, how, pair, phi)

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
            joints.append([_join(bucket, slots) for bucket in buckets])
            for bucket, joint in zip(buckets, joints[-1], strict=True):
                if bucket.addition is not None:
                    slots[bucket.result] = bucket.addition.add(joints[-1][0], joints[-1][1])
                    break
                result = _reduce(bucket, joint)
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
        scopes = {buckets[0].result: buckets[0].result_scope for _, buckets in self._steps}
        steps = []
        for (_, buckets), parts in zip(reversed(self._steps), reversed(joints), strict=True):
            bucket = buckets[0]
            if bucket.result_scope:
                beyond = outside.pop(bucket.result)
            else:
                beyond = np.asarray(total - float(slots[bucket.result]))
            if bucket.addition is None:
                wholes = [_whole(bucket, parts[0], beyond)]
            else:
                wholes = list(bucket.addition.wholes(parts[0], parts[1], beyond))
            for bucket, whole in zip(buckets, wholes, strict=True):
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
            columns = [
                joint[(slice(None), *(int(chosen[u]) for u in bucket.scope[1:]))]
                for bucket, joint in zip(buckets, tables, strict=True)
            ]
            first = buckets[0] if buckets else None
            if first is not None and first.addition is not None:
                total = int(chosen[first.result_scope[0]])
                chosen[v], chosen[buckets[1].scope[0]] = first.addition.parts(columns[0], columns[1], total)
                continue
            column = np.zeros(self.sizes[v])
            for bucket, part in zip(buckets, columns, strict=True):
                column = column + part
                open_ = _open(bucket, chosen)
                if open_ is not None:
                    column[~open_] = np.inf
            chosen[v] = int(np.argmin(column))
        return chosen


def _reduce(bucket: Bucket, joint: np.ndarray) -> np.ndarray:
    """What a step hands on of its joint table."""
    if bucket.how == "relation":
        return _substitute(bucket, joint)
    if bucket.phi is None:
        return joint.min(axis=0)
    if bucket.how == "expand":
        return joint[bucket.phi]
    return np.minimum.reduceat(joint, _runs(bucket.phi), axis=0)


def _whole(bucket: Bucket, joint: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """The joint table with the least of what lies beyond its result, at every entry."""
    if bucket.how == "relation":
        return joint + _spread(bucket, beyond, joint.shape)
    if bucket.phi is None:
        return joint + beyond
    if bucket.how == "expand":
        return joint + np.minimum.reduceat(beyond, _runs(bucket.phi), axis=0)
    return joint + beyond[bucket.phi]


def _open(bucket: Bucket, chosen: np.ndarray) -> np.ndarray | None:
    """Which cells of ``scope[0]`` go with what is chosen already; None: all."""
    cells = np.arange(bucket.shape[0])
    if bucket.pair is not None:
        x, y, first, count = bucket.pair
        start = first[chosen[x], chosen[y]]
        return (cells >= start) & (cells < start + count[chosen[x], chosen[y]])
    if bucket.phi is None:
        return None
    if bucket.how == "expand":
        return cells == bucket.phi[chosen[bucket.result_scope[0]]]
    return bucket.phi == chosen[bucket.result_scope[0]]


def _runs(phi: np.ndarray) -> np.ndarray:
    """Where each cell of an image begins."""
    return np.flatnonzero(np.diff(phi, prepend=-1))


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


def _mask(cells: Cells, relation: Relation) -> np.ndarray:
    """0 where cells of (a, b, total) can meet, else +inf."""
    first, count = meet(cells, relation, relation.total)
    total = np.arange(cells.sizes[relation.total])
    inside = (total >= first[..., None]) & (total < (first + count)[..., None])
    return np.where(inside, 0.0, np.inf)
