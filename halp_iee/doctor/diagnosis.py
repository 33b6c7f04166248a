"""Where the time goes, what cannot be pruned away, and what a latency target will do.

Everything is predicted from the latency table; nothing is timed or trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from halp_iee.doctor.macs import MacCost
from halp_iee.errors import TargetError, UsageError
from halp_iee.graph.records import ChannelGroup
from halp_iee.solve import floor_ms, solve

_STEP_SHARE = 8
"""A step counts as near where at most this fraction (1 / 8) of the channels must go to fall below it."""
_STEP_TIMES = 3.0
"""... and where it saves this many times what as many channels save on average."""
_BISECTIONS = 9
_MACS_GAP = 5e-3
"""Pruning by MACs is solved to this gap."""
_SMALLEST = 0.001
"""Savings and traps under this share of the dense latency are not told."""


@dataclass(frozen=True)
class LayerTime:
    """One layer: dense and chosen channels and ms, and its share of the dense latency."""

    name: str
    kernel: str
    c_in: int
    c_out: int
    dense_ms: float
    share: float
    chosen_c_in: int | None
    chosen_c_out: int | None
    chosen_ms: float | None


@dataclass(frozen=True)
class Step:
    """A group that sits just above a step: dropping ``drop`` of its ``size`` units saves ``saves_ms``."""

    group: str
    size: int
    drop: int
    saves_ms: float
    average_ms: float


@dataclass(frozen=True)
class Trap:
    """Widths ``narrow[0]..narrow[1]`` of a group that are slower than ``wide`` units, by up to ``loses_ms``."""

    group: str
    size: int
    narrow: tuple[int, int]
    wide: int
    loses_ms: float


@dataclass(frozen=True)
class Rival:
    """The best network of as many MACs as the latency-aware one, chosen without looking at latency."""

    macs_m: float
    latency_ms: float
    importance: float
    over: float


@dataclass(frozen=True)
class Diagnosis:
    """All that is known before a training. Latencies in ms, of one call, predicted from the table.

    Attributes:
        fixed_ms: what no width changes: the calls' offset, and layers without a prunable group.
        floor_ms: the least that any widths reach, with every prunable group at its narrowest.
        reachable: whether the target is at or over the floor.
        latency_ms, importance, gap: of the best network at the target; None where it cannot be reached.
        same_macs: what pruning by MACs gives at as many MACs.
        macs_to_meet: what pruning by MACs must come down to until it meets the target; None where it never does.
        frozen: groups that cannot be pruned, with the reason.
    """

    source: str
    device: str
    batch: int
    dense_ms: float
    budget_ms: float
    fixed_ms: float
    floor_ms: float
    reachable: bool
    latency_ms: float | None
    importance: float | None
    gap: float | None
    macs_dense_m: float
    macs_m: float | None
    same_macs: Rival | None
    macs_to_meet: Rival | None
    layers: tuple[LayerTime, ...]
    steps: tuple[Step, ...]
    traps: tuple[Trap, ...]
    trapped: Mapping[str, int]
    frozen: tuple[tuple[str, int, str], ...]
    uncosted: int
    widths: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(
    cost: Any,
    importance: Mapping[str, Any],
    budget_ms: float,
    groups: Sequence[ChannelGroup] = (),
    *,
    device: str = "",
    batch: int = 1,
) -> Diagnosis:
    """Diagnose a network on a device for a target.

    Args:
        cost: a ``LatencyModel``.
        importance: group name -> one score a unit.
        budget_ms: the target.
        groups: those of the graph; the frozen ones are listed.

    Raises:
        UsageError: bad input, or a table in which everything costs nothing.
    """
    dense_ms = float(cost.predict({}))
    if not np.isfinite(dense_ms) or dense_ms <= 0.0:
        raise UsageError("there is nothing to diagnose", f"the dense network takes {dense_ms} ms", "Check the table")
    frozen = tuple((g.name, g.size, g.reason or "") for g in groups if not g.prunable)
    scored = {name: scores for name, scores in importance.items() if name not in {f[0] for f in frozen}}
    lowest_ms = floor_ms(cost, scored)
    fixed_ms = float(cost.fixed_ms) + sum(
        float(la.ms(la.c_in.full, la.c_out.full))
        for la in cost.layers
        if not set(la.c_in.groups + la.c_out.groups) & set(scored)
    )
    macs = MacCost(cost)
    try:
        answer = solve(cost, scored, budget_ms)
    except TargetError:
        answer = None
    widths = {} if answer is None else dict(answer.widths)
    whole = sum(float(np.asarray(scores).sum()) for scores in scored.values())
    rival, meets = None, None
    if answer is not None and budget_ms < dense_ms:
        rival = _by_macs(cost, macs, scored, macs.predict(widths), budget_ms, whole)
        meets = _macs_that_meet(cost, macs, scored, budget_ms, whole)
    steps, traps, trapped = _staircase(cost, scored, dense_ms)
    return Diagnosis(
        source=getattr(cost, "source", "unknown"),
        device=device,
        batch=batch,
        dense_ms=dense_ms,
        budget_ms=float(budget_ms),
        fixed_ms=fixed_ms,
        floor_ms=lowest_ms,
        reachable=answer is not None,
        latency_ms=None if answer is None else answer.latency_ms,
        importance=None if answer is None or whole <= 0.0 else answer.value / whole,
        gap=None if answer is None else answer.gap,
        macs_dense_m=macs.predict({}),
        macs_m=None if answer is None else macs.predict(widths),
        same_macs=rival,
        macs_to_meet=meets,
        layers=_layers(cost, dense_ms, None if answer is None else widths),
        steps=steps,
        traps=traps,
        trapped=trapped,
        frozen=frozen,
        uncosted=len(getattr(cost, "missing", ())) + len(getattr(cost, "unmodelled", ())),
        widths={name: int(k) for name, k in widths.items()},
    )


def _by_macs(
    cost: Any, macs: MacCost, scores: Mapping[str, Any], macs_m: float, budget_ms: float, whole: float
) -> Rival | None:
    if macs_m <= 0.0:
        return None
    try:
        named = {n: s for n, s in scores.items() if _named(macs, n)}
        answer = solve(macs, named, macs_m * (1.0 + 1e-9), tolerance=_MACS_GAP)
    except TargetError:
        return None
    latency_ms = float(cost.predict(answer.widths))
    share = answer.value / whole if whole > 0.0 else 0.0
    return Rival(macs.predict(answer.widths), latency_ms, share, latency_ms / budget_ms - 1.0)


def _macs_that_meet(
    cost: Any, macs: MacCost, scores: Mapping[str, Any], budget_ms: float, whole: float
) -> Rival | None:
    """The largest network found, of those that pruning by MACs gives, that is within the latency budget.

    Its latency need not fall with its MACs, so this is where the bisection comes to rest.
    """
    low, high, found = 0.0, macs.predict({}), None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        rival = _by_macs(cost, macs, scores, middle, budget_ms, whole)
        if rival is not None and rival.latency_ms > budget_ms:
            high = middle
            continue
        low = middle  # within the budget, or fewer MACs than any widths have
        if rival is not None and (found is None or rival.macs_m > found.macs_m):
            found = rival
    return found


def _named(cost: Any, group: str) -> bool:
    return any(group in layer.c_in.groups + layer.c_out.groups for layer in cost.layers)


def _layers(cost: Any, dense_ms: float, widths: Mapping[str, int] | None) -> tuple[LayerTime, ...]:
    rows = []
    for la in cost.layers:
        a, b = la.c_in.full, la.c_out.full
        ms = float(la.ms(a, b))
        kept: tuple[int | None, int | None, float | None] = (None, None, None)
        if widths is not None:
            c_in, c_out = la.c_in(widths), la.c_out(widths)
            kept = (c_in, c_out, float(la.ms(c_in, c_out)))
        rows.append(LayerTime(la.name, la.kernel.key, a, b, ms, ms / dense_ms, *kept))
    return tuple(sorted(rows, key=lambda row: -row.dense_ms))


def curve_ms(cost: Any, group: str, size: int) -> np.ndarray:
    """Latency in ms of the layers that a group touches at 1..size of its units, the others being whole."""
    units = np.arange(1, size + 1)
    total = np.zeros(size)
    for la in cost.layers:
        per = [sum(p for name, _, p in axis.terms if name == group) for axis in (la.c_in, la.c_out)]
        if any(per):
            c_in, c_out = (axis.full - p * (size - units) for axis, p in zip((la.c_in, la.c_out), per, strict=True))
            total = total + la.ms(c_in, c_out)
    return total


def _staircase(
    cost: Any, scores: Mapping[str, Any], dense_ms: float
) -> tuple[tuple[Step, ...], tuple[Trap, ...], dict[str, int]]:
    steps, traps, trapped = [], [], {}
    for group, values in scores.items():
        size = len(values)
        curve = curve_ms(cost, group, size)
        if size < 2 or not curve.any():
            continue
        step = _nearest_step(group, size, curve, dense_ms)
        if step is not None:
            steps.append(step)
        # The fastest of all widths that are at least as wide: above it a width is a trap.
        best = np.minimum.accumulate(curve[::-1])[::-1]
        loss = curve - best
        slow = loss > _SMALLEST * dense_ms
        if slow.any():
            trapped[group] = int(slow.sum())
            worst = int(np.argmax(loss))
            first = last = worst
            while first > 0 and slow[first - 1]:
                first -= 1
            while last + 1 < size and slow[last + 1]:
                last += 1
            wide = worst + int(np.flatnonzero(curve[worst:] <= best[worst] * (1 + 1e-12))[0])
            traps.append(Trap(group, size, (first + 1, min(last + 1, wide)), wide + 1, float(loss[worst])))
    return (
        tuple(sorted(steps, key=lambda s: -s.saves_ms)),
        tuple(sorted(traps, key=lambda t: -t.loses_ms)),
        trapped,
    )


def _nearest_step(group: str, size: int, curve: np.ndarray, dense_ms: float) -> Step | None:
    average = max(0.0, float(curve[-1] - curve.min())) / (size - 1)
    most = max(1, size // _STEP_SHARE)
    drops = np.arange(1, most + 1)
    saved = curve[-1] - curve[size - 1 - drops]
    good = (saved > _SMALLEST * dense_ms) & (saved >= _STEP_TIMES * average * drops)
    if not good.any():
        return None
    rate = np.where(good, saved / drops, -np.inf)
    drop = int(drops[int(np.argmax(rate))])
    return Step(group, size, drop, float(saved[drop - 1]), average * drop)
