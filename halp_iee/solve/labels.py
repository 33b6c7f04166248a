"""What the Lagrangian leaves open, closed: dynamic programming over widths *and* latency, near the dual's optimum.

At the price lambda every choice of widths loses x = (lambda T - V) - min (lambda T - V) >= 0 against the dual, and

    V = D(lambda) - lambda (budget - T) - x,

so a choice within the budget that beats a value V0 loses less than D - V0. The min-marginals of the dual say the
least loss of every cell of every table, so few cells remain, and along the elimination order each message becomes
a list of *labels* (latency, importance) a cell instead of one number. A label goes when another of its cell is no
slower and no less important. Labels whose latencies lie within ``grain_ms`` are merged into one with the least
latency and the most importance of them: it can only promise too much, so the best promise within the budget is a
bound. Beside it each label carries a true choice, so the same pass gives answers.

The idea of merging labels for a bound and carrying true ones for answers: relaxed and restricted decision diagrams
(D. Bergman, A. Cire, W.-J. van Hoeve, J. Hooker, INFORMS Journal on Computing 28 (2016)); the core around the
dual's optimum: E. Balas and E. Zemel, Operations Research 28 (1980).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from halp_iee.solve.dual import Oracle
from halp_iee.solve.eliminate import Bucket

_MOST_OPEN = 2_000_000
"""Open cells of one table, or labels of one joint, over which the pass is given up."""
_A_CELL = 6
"""Labels a cell may have whatever the number of cells."""
_GRAIN = 1e-4
"""The least grain, as a share of the latency that the loss allowed is worth."""
_SLACK = 1e-9
"""Share of the loss allowed that is left to rounding."""


@dataclass(eq=False)
class _Labels:
    """Labels of the cells of one scope, by rising cell and, within a cell, rising loss.

    Attributes:
        cell: which cell each label belongs to.
        ms, value: what the label promises; true_ms, true_value: what its choice really has.
        loss: over the least of the cell's.
        back: (which label of what came before, or which entry; which label of the message joined, or -1).
    """

    cell: np.ndarray
    ms: np.ndarray
    value: np.ndarray
    true_ms: np.ndarray
    true_value: np.ndarray
    loss: np.ndarray
    back: tuple[np.ndarray, np.ndarray]

    def __len__(self) -> int:
        return len(self.cell)

    def take(self, index: np.ndarray) -> _Labels:
        return _Labels(
            self.cell[index], self.ms[index], self.value[index], self.true_ms[index], self.true_value[index],
            self.loss[index], (self.back[0][index], self.back[1][index]),
        )  # fmt: skip


@dataclass(eq=False)
class _Step:
    """How the labels of one step came about, for the way back."""

    variables: tuple[int, ...]
    coordinates: tuple[np.ndarray, ...]
    joined: list[int] = field(default_factory=list)
    stages: list[_Labels] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Closed:
    """What one pass found.

    Attributes:
        bound: no choice of the network's cells within the budget has a larger value.
        choices: cells of every variable, the most promising first; maybe just over the budget.
        work: labels that were looked at.
    """

    bound: float
    choices: tuple[np.ndarray, ...]
    work: int


class TooManyLabelsError(Exception):
    """More labels than allowed; nothing is known."""


def close(oracle: Oracle, price: float, budget_ms: float, above: float, most: int) -> Closed:
    """Bound the importance that any widths of the network reach within the budget, from ``above`` on.

    Args:
        oracle: one that is ``closable``.
        price: the dual's, importance a ms; above 0.
        above: choices that are not worth more than this are not looked at; the bound is at least this.
        most: labels a message holds, or a few a cell where it has many cells; those nearest to each other are merged.

    Raises:
        TooManyLabelsError: tables of more than 40 times that many open cells.
    """
    return _Pass(oracle, price, budget_ms, above, most).run()


def closable(oracle: Oracle) -> bool:
    """Whether ``close`` can read this: cells of single widths, and an exact plan."""
    plan = oracle.elimination
    return plan.exact and plan.minima and oracle.cells.exact


class _Pass:
    def __init__(self, oracle: Oracle, price: float, budget_ms: float, above: float, most: int) -> None:
        assert closable(oracle)
        self.cells = oracle.cells
        self.plan = oracle.elimination
        self.price, self.most, self.above = price, most, above
        network = oracle.cells.network
        self.room_ms = budget_ms - network.constant_ms
        self.tables = oracle.tables(price)
        self.raw_ms = [*oracle.cells.alone_ms, *(oracle.cells.together_ms[s] for s in network.scopes if len(s) == 2)]
        self.raw_value = [variable.values for variable in network.variables]
        self.work = 0

    def run(self) -> Closed:
        wholes, total, slots = self.plan.wholes(self.tables)
        dual = self.price * self.room_ms - total
        self.allowed = (dual - self.above) * (1.0 + _SLACK) + _SLACK * abs(dual)
        self.slots = slots
        self.grain_ms = _GRAIN * self.allowed / self.price
        self.messages: dict[int, _Labels] = {}
        self.scopes: dict[int, tuple[int, ...]] = {}
        self.steps: dict[int, _Step] = {}
        ends = []
        for bucket, whole, beyond in wholes:
            self._eliminate(bucket, whole, beyond, total)
            if not bucket.result_scope:
                ends.append(bucket.result)
        final = _Step((), ())
        labels = self._entries(np.zeros(1), np.zeros(1), np.zeros(1))
        final.stages.append(labels)
        for slot in ends:
            labels = self._join(labels, np.zeros(len(labels), dtype=np.int64), self.messages[slot], final, slot)
        promised = np.where(labels.ms <= self.room_ms, np.minimum(labels.value, dual - labels.loss), -np.inf)
        bound = max(self.above, float(promised.max(initial=-np.inf)))
        held = np.where(labels.true_ms <= self.room_ms, labels.true_value, -np.inf)
        picks = dict.fromkeys([*np.argsort(-held, kind="stable")[:1], *np.argsort(-promised, kind="stable")[:2]])
        choices = []
        for pick in picks:
            chosen = np.full(len(self.plan.sizes), -1, dtype=np.int64)
            self._trace(final, int(pick), chosen)
            choices.append(chosen)
        return Closed(bound, tuple(choices), self.work)

    def _eliminate(self, bucket: Bucket, whole: np.ndarray, beyond: np.ndarray, total: float) -> None:
        scope, result_scope, sizes = bucket.scope, bucket.result_scope, self.plan.sizes
        loss = whole - total
        where = np.nonzero(loss <= self.allowed)
        if bucket.pair is None:
            variables, coordinates = scope, where
        else:
            # Cells are single widths, so the relation leaves one of v, or none.
            variables = (scope[0], *result_scope)
            coordinates = (bucket.pair[2][where[:2]], *where)
        self._limit(len(coordinates[0]))
        at = dict(zip(variables, coordinates, strict=True))
        step = _Step(tuple(variables), tuple(coordinates))
        self.steps[bucket.result] = step
        ms, value = np.zeros(len(coordinates[0])), np.zeros(len(coordinates[0]))
        inner = []
        for slot in bucket.slots:
            if slot in self.messages:
                inner.append(slot)
            elif slot < len(self.raw_ms):
                axes = self._scope_of(slot)
                ms += self.raw_ms[slot][tuple(at[v] for v in axes)]
                if slot < len(self.raw_value):
                    value += self.raw_value[slot][at[axes[0]]]
        labels = self._entries(ms, value, loss[where])
        step.stages.append(labels)
        for slot in inner:
            axes = self.scopes[slot]
            cells = np.ravel_multi_index(tuple(at[v] for v in axes), tuple(sizes[v] for v in axes))
            labels = self._join(labels, cells[labels.cell], self.messages[slot], step, slot)
        # The result's cells. The loss so far holds that of the best completion too; the choice itself loses less.
        if result_scope:
            target = np.ravel_multi_index(tuple(at[v] for v in result_scope), tuple(sizes[v] for v in result_scope))
            cell = target[labels.cell]
            loss = labels.loss - (self.slots[bucket.result] + beyond - total).ravel()[cell]
        else:
            cell, loss = np.zeros(len(labels), dtype=np.int64), labels.loss
        back = (np.arange(len(labels)), np.full(len(labels), -1))
        message = _Labels(cell, labels.ms, labels.value, labels.true_ms, labels.true_value, loss, back)
        self.messages[bucket.result] = self._merge(message)
        self.scopes[bucket.result] = result_scope

    def _scope_of(self, slot: int) -> tuple[int, ...]:
        return self.cells.network.scopes[slot]

    def _entries(self, ms: np.ndarray, value: np.ndarray, loss: np.ndarray) -> _Labels:
        index = np.arange(len(ms))
        return _Labels(index, ms, value, ms, value, loss, (index, np.full(len(ms), -1)))

    def _limit(self, count: int) -> None:
        self.work += count
        if count > _MOST_OPEN:
            raise TooManyLabelsError

    def _join(self, labels: _Labels, cells: np.ndarray, message: _Labels, step: _Step, slot: int) -> _Labels:
        """Every label with every one of the message's at its cell whose losses together are allowed."""
        spread = 4.0 * (self.allowed + abs(float(message.loss.min(initial=0.0))))
        shift = float(message.loss.min(initial=0.0))
        keys = message.cell * spread + (message.loss - shift)
        first = np.searchsorted(message.cell, cells, side="left")
        room = np.minimum(self.allowed - labels.loss - shift, 0.9 * spread)
        stop = np.searchsorted(keys, cells * spread + room, side="right")
        count = np.maximum(stop - first, 0)
        self._limit(int(count.sum()))
        left = np.repeat(np.arange(len(labels)), count)
        right = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
        joined = _Labels(
            labels.cell[left],
            labels.ms[left] + message.ms[right],
            labels.value[left] + message.value[right],
            labels.true_ms[left] + message.true_ms[right],
            labels.true_value[left] + message.true_value[right],
            labels.loss[left] + message.loss[right],
            (left, right),
        )
        joined = self._merge(joined)
        step.joined.append(slot)
        step.stages.append(joined)
        return joined

    def _merge(self, labels: _Labels) -> _Labels:
        """Leave out what another label of the cell beats, and merge what lies within the grain."""
        if not len(labels):
            return labels
        low, high = float(labels.ms.min()), float(labels.ms.max())
        spread = 2.0 * (high - low) + 1e-12
        order = np.argsort(labels.cell * spread + (labels.ms - low), kind="stable")
        value = labels.value[order]
        rise = 2.0 * (float(value.max()) - float(value.min())) + 1e-12
        ladder = labels.cell[order] * rise + (value - float(value.min()))
        # Whatever lies between two of these is beaten by the first of them.
        rungs = np.flatnonzero(np.diff(np.maximum.accumulate(ladder), prepend=-np.inf) > 0.0)
        cell, ms = labels.cell[order[rungs]], labels.ms[order[rungs]]
        grain_ms = self.grain_ms
        most = max(self.most, _A_CELL * (1 + int(np.count_nonzero(np.diff(cell)))))
        while True:
            block = np.floor((ms - low) / grain_ms)
            starts = np.flatnonzero((np.diff(block, prepend=-1.0) != 0) | (np.diff(cell, prepend=-1) != 0))
            if len(starts) <= most or grain_ms > spread:
                break
            grain_ms *= 1.5
        last = np.append(starts[1:], len(rungs)) - 1
        kept = labels.take(order[rungs[last]])
        kept.ms = ms[starts]
        kept.loss = np.minimum.reduceat(labels.loss[order], rungs[starts])
        return kept.take(np.lexsort((kept.loss, kept.cell)))

    def _trace(self, step: _Step, label: int, chosen: np.ndarray) -> None:
        """Walk back from a label of the last stage of a step."""
        stack = [(step, len(step.stages) - 1, label)]
        while stack:
            step, stage, label = stack.pop()
            while stage > 0:
                labels = step.stages[stage]
                inner, slot = int(labels.back[1][label]), step.joined[stage - 1]
                label = int(labels.back[0][label])
                stage -= 1
                below = self.steps[slot]
                stack.append((below, len(below.stages) - 1, int(self.messages[slot].back[0][inner])))
            entry = int(step.stages[0].back[0][label])
            for v, coordinate in zip(step.variables, step.coordinates, strict=True):
                chosen[v] = coordinate[entry]
