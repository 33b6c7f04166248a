"""From a cost model, scores and limits to a ``Problem``; every input is checked here, once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from halp_iee.errors import UsageError
from halp_iee.solve.problem import Axis, LayerTerm, Problem, UnitGroup

if TYPE_CHECKING:
    from halp_iee.graph.records import Keep, Width

Limit = Mapping[str, int] | int | None
_PREDICTED = 1000
"""Predictions that are kept: the same widths are asked about more than once."""
WHAT = "the widths cannot be solved for"


def build(
    cost: Any,
    importance: Mapping[str, Any],
    budget_ms: float,
    *,
    active: Keep | None = None,
    standing: Keep | None = None,
    min_units: Limit = 1,
    max_units: Limit = None,
    steps: Limit = 1,
) -> Problem:
    """State the width problem.

    Args:
        cost: anything with ``layers`` (each ``name``, ``c_in`` and ``c_out`` as ``Width``, ``ms(c_in, c_out)``
            over broadcasting arrays, in ms), ``fixed_ms`` and ``predict(widths)``. Where it also has
            ``graph.groups``, groups that are not prunable are not decided even when scored. Where it has ``branches``
            (``WithBranches``), the groups of each may have no units, all of them or none.
        importance: group name -> one score a unit, finite and not negative. Groups without scores are
            not decided: they stay as in ``active`` (without it as in ``standing``), else whole.
        budget_ms: the most that the network may cost, whole, in ms.
        active: only these units may be kept. A group that it does not name may be kept whole.
        standing: these units are kept whatever their scores; the rest are candidates, best first. A
            group that it does not name stands whole.
        min_units: least width of every group, or by name. One number is cut to what a group has.
        max_units: largest width, likewise.
        steps: widths are multiples of it; besides, a group's largest width and the width that already
            stands are always admissible.

    Raises:
        UsageError: a value that is not a number, a wrong length, an unknown name, contradictory limits.
    """
    budget_ms = check_budget(budget_ms)
    sizes, frozen = _group_sizes(cost)
    for name in importance:
        if name not in sizes:
            raise UsageError(
                WHAT,
                f"importance names the group {name!r}, which the cost model does not have",
                f"Use names of the graph's groups, e.g. {', '.join(map(repr, list(sizes)[:3])) or '(none)'}",
            )
    decided = [name for name in sizes if name in importance and name not in frozen]
    active_units = _keep(active, sizes, "active")
    standing_units = _keep(standing, sizes, "standing")
    for label, limit in (("min_units", min_units), ("max_units", max_units), ("steps", steps)):
        _check_limit(limit, sizes, label)

    leaving = {
        name
        for branch in getattr(cost, "branches", ())
        if standing is None and set(branch) <= set(decided)
        for name in branch
    }
    groups, settled = [], {}
    for name, size in sizes.items():
        allowed = active_units.get(name, np.arange(size, dtype=np.int64))
        stands = np.zeros(0, dtype=np.int64)
        if standing is not None:
            stands = standing_units.get(name, np.arange(size, dtype=np.int64))
            outside = np.setdiff1d(stands, allowed)
            if active is not None and len(outside):
                raise UsageError(
                    WHAT,
                    f"unit {outside[0]} of group {name!r} is standing but not active",
                    "Standing units must be among the active ones",
                )
        if name not in decided:
            settled[name] = stands if standing is not None and active is None else allowed
            continue
        scores = _scores(name, importance[name], size)
        candidates = np.setdiff1d(allowed, stands)
        order = np.concatenate([stands, candidates[np.argsort(-scores[candidates], kind="stable")]])
        widths = _widths(name, len(order), len(stands), min_units, max_units, steps)
        if name in leaving:
            widths = np.union1d(0, widths)
        cumulated = np.concatenate([[0.0], np.cumsum(scores[order])])
        groups.append(UnitGroup(name, size, order, len(stands), widths, cumulated[widths]))
    for name, units in active_units.items():
        if name not in decided:
            settled.setdefault(name, units)

    index = {group.name: i for i, group in enumerate(groups)}
    layers, fixed_ms = [], float(cost.fixed_ms)
    for layer in cost.layers:
        surface = getattr(layer, "surface", None)
        alike = None if surface is None else (surface, getattr(layer, "scale", 1.0))
        c_in, c_out = _axis(layer.c_in, index, settled), _axis(layer.c_out, index, settled)
        term = LayerTerm(layer.name, c_in, c_out, layer.ms, alike)
        if term.groups:
            layers.append(term)
        else:
            fixed_ms += float(layer.ms(np.array([term.c_in.fixed]), np.array([term.c_out.fixed]))[0])

    dense_ms = float(cost.predict(dict(sizes)))
    predicted = {tuple(sizes.values()): dense_ms}

    def predict_ms(widths: np.ndarray) -> float:
        named = {name: len(units) for name, units in settled.items()}
        named.update({group.name: int(k) for group, k in zip(groups, widths, strict=True)})
        key = tuple(named[name] for name in sizes)
        if key not in predicted:
            if len(predicted) > _PREDICTED:
                predicted.clear()
            predicted[key] = float(cost.predict(named))
        return predicted[key]

    return Problem(
        tuple(groups),
        tuple(layers),
        fixed_ms,
        budget_ms,
        settled,
        dense_ms,
        predict_ms,
    )


def check_budget(budget_ms: Any) -> float:
    """The budget as a number. Raises UsageError where it is none, not finite or not positive."""
    try:
        number = float(budget_ms)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number <= 0.0:
        raise UsageError(WHAT, f"budget_ms is {budget_ms!r}", "Give a positive number of milliseconds")
    return number


def _group_sizes(cost: Any) -> tuple[dict[str, int], set[str]]:
    """Name -> size of every group that a layer depends on or the graph lists; and those frozen."""
    sizes: dict[str, int] = {}
    for layer in cost.layers:
        for axis in (layer.c_in, layer.c_out):
            for name, size, _ in axis.terms:
                if sizes.setdefault(name, int(size)) != int(size):
                    raise UsageError(
                        WHAT,
                        f"group {name!r} has {sizes[name]} units in one layer and {size} in {layer.name!r}",
                        "Build the cost model from one graph",
                    )
    frozen = set()
    for group in getattr(getattr(cost, "graph", None), "groups", ()):
        sizes.setdefault(group.name, int(group.size))
        if not group.prunable:
            frozen.add(group.name)
    return sizes, frozen


def _keep(keep: Keep | None, sizes: Mapping[str, int], label: str) -> dict[str, np.ndarray]:
    checked = {}
    for name, units in (keep or {}).items():
        array = np.atleast_1d(np.asarray(units))
        if name not in sizes:
            raise UsageError(
                WHAT,
                f"{label} names the group {name!r}, which the cost model does not have",
                "Use names of the graph's groups",
            )
        if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
            raise UsageError(
                WHAT,
                f"{label}[{name!r}] is not a non-empty list of unit indices",
                "Name at least one unit, or leave the group out to keep it whole",
            )
        unique = np.unique(array.astype(np.int64))
        if len(unique) != len(array) or unique[0] < 0 or unique[-1] >= sizes[name]:
            raise UsageError(
                WHAT,
                f"{label}[{name!r}] has a unit twice or one outside 0..{sizes[name] - 1}",
                "Name each unit once",
            )
        checked[name] = unique
    return checked


def _scores(name: str, scores: Any, size: int) -> np.ndarray:
    detached = scores.detach().cpu().numpy() if hasattr(scores, "detach") else scores
    try:
        array = np.asarray(detached, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.full(0, np.nan)
    if array.shape != (size,):
        raise UsageError(
            WHAT,
            f"importance of group {name!r} has shape {array.shape}, the group has {size} units",
            "Give one score a unit",
        )
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0.0)))
    if len(bad):
        raise UsageError(
            WHAT,
            f"importance of unit {bad[0]} of group {name!r} is {array[bad[0]]}",
            "Scores must be finite and not negative: check the criterion and the gradients",
        )
    return array


def _check_limit(limit: Limit, sizes: Mapping[str, int], label: str) -> None:
    named: Iterable[tuple[str, Any]] = limit.items() if isinstance(limit, Mapping) else [("", limit)]
    for name, number in named:
        if name and name not in sizes:
            raise UsageError(
                WHAT,
                f"{label} names the group {name!r}, which the cost model does not have",
                "Use names of the graph's groups",
            )
        if number is None and not name:
            continue
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise UsageError(
                WHAT,
                f"{label}{f'[{name!r}]' if name else ''} is {number!r}",
                "Give a whole number of at least 1",
            )


def _widths(name: str, most: int, standing: int, min_units: Limit, max_units: Limit, steps: Limit) -> np.ndarray:
    def named(limit: Limit) -> int | None:
        return int(limit[name]) if isinstance(limit, Mapping) and name in limit else None

    low, high = named(min_units), named(max_units)
    if low is not None and low > most:
        raise UsageError(
            WHAT,
            f"min_units of group {name!r} is {low}, but only {most} units may be kept",
            "Lower the limit or allow more units",
        )
    if low is None:
        low = min(most, int(min_units) if isinstance(min_units, int | np.integer) else 1)
    if high is None:
        high = int(max_units) if isinstance(max_units, int | np.integer) else most
    if high < low:
        raise UsageError(
            WHAT,
            f"group {name!r} is to keep at least {low} and at most {high} units",
            "Give limits that agree",
        )
    if high < standing:
        raise UsageError(
            WHAT,
            f"group {name!r} may keep {high} units, but {standing} are standing",
            "Raise max_units or let fewer units stand",
        )
    low, high = max(low, standing), min(high, most)
    step = named(steps)
    if step is None:
        step = int(steps) if isinstance(steps, int | np.integer) else 1
    inner = np.arange(-(-low // step) * step, high + 1, step, dtype=np.int64)
    edge = [high] if standing < low or not standing else [standing, high]
    return np.unique(np.concatenate([inner, np.array(edge, dtype=np.int64)]))


def _axis(width: Width, index: Mapping[str, int], settled: Mapping[str, np.ndarray]) -> Axis:
    fixed = int(width.fixed)
    terms: dict[int, int] = {}
    for name, _, per in width.terms:
        if name in index:
            terms[index[name]] = terms.get(index[name], 0) + int(per)
        else:
            fixed += int(per) * len(settled[name])
    return Axis(tuple(terms.items()), fixed)
