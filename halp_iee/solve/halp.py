"""The published solver: a knapsack over single units, each with the latency it adds at today's inputs.

    R_j = T(p_in, j) - T(p_in, j - 1),   1 <= j <= p_out                               (1)

p_in is held at the current widths, so each group's modelled latency depends on its own width alone and
the problem falls apart into a knapsack whose items (units in order of importance) are taken only with
all more important ones. That is a choice of one prefix a group, a multiple-choice knapsack, and solving
it as such makes negative R_j (fewer channels can be slower) ordinary: a prefix is worth its total.

Source: IEE, appendix section 4, equations (1) and (2); HALP (Shen et al., NeurIPS 2022), section 3.

Deviations:
  * The reference takes items one by one and keeps a slack for negative ones; prefixes need no slack.
  * Latencies are rounded up a prefix, not an item, to ``resolution_ms``.
  * What the knapsack believes is not what the network costs, because p_in moves. The knapsack's table
    holds its answer for every smaller capacity too, so the best of those whose *true* latency is within the
    budget is returned. ``as_published=True`` returns the one shot instead, whatever it truly costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from halp_iee.errors import UsageError
from halp_iee.solve.problem import Problem

_CAPACITY = 10_000
_MOST_CAPACITY = 1_000_000


@dataclass(frozen=True, eq=False)
class Knapsack:
    """The filled table of a multiple-choice knapsack.

    Attributes:
        weights: per group, what each of its options weighs, in whole units, least 0.
        options: per group, index into its widths of each option.
        best: most importance for every capacity, shape (capacity + 1,).
        taken: option taken at every capacity, shape (groups, capacity + 1).
    """

    weights: tuple[np.ndarray, ...]
    options: tuple[np.ndarray, ...]
    best: np.ndarray
    taken: np.ndarray

    def choices(self, capacities: np.ndarray) -> np.ndarray:
        """Index into each group's widths, shape (many, groups), for many capacities."""
        left = capacities.astype(np.int64)
        chosen = np.zeros((len(left), len(self.weights)), dtype=np.int64)
        for g in range(len(self.weights) - 1, -1, -1):
            option = self.taken[g, left]
            chosen[:, g] = self.options[g][option]
            left = left - self.weights[g][option]
        return chosen


def fill_knapsack(weights: list[np.ndarray], values: list[np.ndarray], capacity: int) -> Knapsack:
    """Take exactly one option a group, most value within the capacity, for every capacity up to it.

    Args:
        weights: per group, whole and not negative, the least of them 0.
        values: per group, as many.
    """
    best = np.zeros(capacity + 1)
    taken = np.zeros((len(weights), capacity + 1), dtype=np.int32)
    candidate, better = np.empty(capacity + 1), np.empty(capacity + 1, dtype=bool)
    kept_weights, kept_options = [], []
    for g, (weight, value) in enumerate(zip(weights, values, strict=True)):
        # An option that weighs no less and is worth no more than another never helps.
        order = np.lexsort((-value, weight))
        front = order[np.flatnonzero(np.diff(np.maximum.accumulate(value[order]), prepend=-np.inf) > 0.0)]
        front = front[weight[front] <= capacity]
        kept_weights.append(weight[front])
        kept_options.append(front)
        following = best + value[front[0]]
        for option, index in enumerate(front[1:], start=1):
            start = int(weight[index])
            room = capacity + 1 - start
            new, wins = candidate[:room], better[:room]
            np.add(best[:room], value[index], out=new)
            np.greater(new, following[start:], out=wins)
            np.copyto(following[start:], new, where=wins)
            np.copyto(taken[g, start:], option, where=wins)
        best = following
    return Knapsack(tuple(kept_weights), tuple(kept_options), best, taken)


def _beyond(weights: list[np.ndarray], values: list[np.ndarray], value: float) -> int:
    """A capacity at which more than ``value`` can be taken, near the least: the steps worth most for their weight."""
    taken, gains, loads = 0.0, [], []
    for weight, worth in zip(weights, values, strict=True):
        order = np.lexsort((-worth, weight))
        front = order[np.flatnonzero(np.diff(np.maximum.accumulate(worth[order]), prepend=-np.inf) > 0.0)]
        at = 0
        taken += float(worth[front[0]])
        while at + 1 < len(front):
            more, heavier = worth[front[at + 1 :]] - worth[front[at]], weight[front[at + 1 :]] - weight[front[at]]
            step = int(np.argmax(more / heavier))
            gains.append(float(more[step]))
            loads.append(int(heavier[step]))
            at += step + 1
    gained, load = np.array(gains), np.array(loads, dtype=np.int64)
    order = np.argsort(-gained / load, kind="stable") if len(load) else np.zeros(0, dtype=np.int64)
    reached = taken + np.cumsum(gained[order])
    enough = int(np.searchsorted(reached, value * (1.0 + 1e-9), side="right"))
    return int(load[order[: enough + 1]].sum())


def modelled_ms(problem: Problem, current: np.ndarray) -> list[np.ndarray]:
    """Per group, latency in ms at each of its widths less that at the current one, p_in held.

    A layer counts for the groups on its output; where the same group is on its input too (depthwise),
    both sides follow. Layers whose output is not decided cost what they cost now.
    """
    curves = [np.zeros(len(group.widths)) for group in problem.groups]
    least, most = np.minimum(problem.least, current), np.maximum(problem.most, current)
    for layer in problem.layers:
        # All that a layer's output can come to while one group moves, read off in one go.
        now = int(layer.c_out.channels(current))
        moves = {g: per * (problem.groups[g].widths - current[g]) for g, per in layer.c_out.terms}
        low = now + min(int(per * (least[g] - current[g])) for g, per in layer.c_out.terms) if moves else now
        high = now + max(int(per * (most[g] - current[g])) for g, per in layer.c_out.terms) if moves else now
        c_out = np.arange(low, high + 1)
        if layer.c_in.terms == layer.c_out.terms:
            c_in = c_out + (layer.c_in.fixed - layer.c_out.fixed)
        else:
            c_in = np.full(len(c_out), int(layer.c_in.channels(current)))
        at_ms = layer.ms(c_in, c_out) if moves else np.zeros(0)
        for g, move in moves.items():
            curves[g] = curves[g] + at_ms[now + move - low] - at_ms[now - low]
    return curves


def solve_halp(
    problem: Problem,
    *,
    resolution_ms: float | None = None,
    as_published: bool = False,
    between: tuple[float, float] = (-math.inf, math.inf),
    maybe_within: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray | None:
    """Widths, shape (groups,), or None when no capacity of the knapsack is truly within the budget.

    Args:
        resolution_ms: what one unit of capacity is worth; default one 10,000th of the range.
        as_published: the one shot, whose true latency may lie on either side of the budget.
        between: only answers are looked for whose importance is above the first and not above the second.
        maybe_within: of many widths, shape (many, groups), which the budget may hold: a quick look before the true one.
    """
    grow = any(group.standing for group in problem.groups)
    current = np.array([group.standing for group in problem.groups]) if grow else problem.most
    current = np.maximum(current, problem.least)
    curves = modelled_ms(problem, current)
    lows = [float(curve.min()) for curve in curves]
    reach_ms = sum(float(curve.max()) - low for curve, low in zip(curves, lows, strict=True))
    # p_in shrinks with the rest, so the true latency may allow more than the model believes.
    room_ms = reach_ms
    if as_published:
        room_ms = problem.allowance_ms - float(problem.latency_ms(current)) - sum(lows)
    room_ms = min(max(room_ms, 0.0), reach_ms)
    # Without room only the lightest options fit, whatever the unit.
    unit_ms = resolution_ms or max(room_ms / _CAPACITY, 1e-9 * reach_ms) or 1.0
    if room_ms / unit_ms > _MOST_CAPACITY:
        raise UsageError(
            "the knapsack cannot be filled",
            f"resolution_ms is {unit_ms}, which cuts {room_ms:.6g} ms into more than {_MOST_CAPACITY} parts",
            "Give a coarser resolution_ms",
        )
    capacity = int(np.floor(room_ms / unit_ms * (1.0 + 1e-12)))
    weights = [
        np.ceil((curve - low) / unit_ms * (1.0 - 1e-12)).astype(np.int64)
        for curve, low in zip(curves, lows, strict=True)
    ]
    # Rounding up may weigh the dense network over a capacity that was rounded down.
    capacity = capacity if as_published else min(capacity + len(weights), sum(int(w.max()) for w in weights))
    values = [group.values for group in problem.groups]
    if math.isfinite(between[1]) and not as_published:
        capacity = min(capacity, _beyond(weights, values, between[1]))
    knapsack = fill_knapsack(weights, values, capacity)

    def widths_at(sizes: np.ndarray) -> np.ndarray:
        indices = knapsack.choices(sizes)
        return np.stack([group.widths[indices[:, g]] for g, group in enumerate(problem.groups)], axis=1)

    if as_published:
        return widths_at(np.array([capacity]))[0]
    # Where the value does not change, neither does the choice worth having.
    sizes = np.flatnonzero(np.diff(knapsack.best, prepend=-np.inf) > 0.0)
    sizes = sizes[(knapsack.best[sizes] > between[0]) & (knapsack.best[sizes] <= between[1])]
    for chunk in np.array_split(sizes[::-1], max(1, len(sizes) // 256)):
        candidates = widths_at(chunk)
        if maybe_within is not None:
            candidates = candidates[maybe_within(candidates)]
            if not len(candidates):
                continue
        first = problem.first_within(candidates)
        if first is not None:
            return candidates[first]
    return None
