"""Other questions about the same widths: least latency for an importance, and several budgets at once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from halp_iee.errors import TargetError, UsageError
from halp_iee.solve.answer import Answer, relative_gap
from halp_iee.solve.api import decided_scores, solve_problem, to_answer
from halp_iee.solve.build import Limit, build
from halp_iee.solve.floor import find_floor
from halp_iee.solve.joint import Solved
from halp_iee.solve.network import Network, compile_network
from halp_iee.solve.problem import Problem
from halp_iee.solve.verify import CertificateError, verify

if TYPE_CHECKING:
    from halp_iee.graph.records import Keep

_BISECTIONS = 30
_PRICES = 25
_CLOSE = 1e-3
"""Shares of a budget that differ by less are not told apart."""


@dataclass(frozen=True, eq=False)
class Fastest:
    """The least latency found that keeps an importance.

    Attributes:
        answer: the widths; ``answer.value`` is at least ``importance``.
        importance: what was asked for.
        least_ms: no admissible widths that keep it are faster (proved).
        gap: ``(answer.latency_ms - least_ms) / answer.latency_ms``.
    """

    answer: Answer
    importance: float
    least_ms: float
    gap: float


def solve_latency(
    cost: Any,
    importance: Mapping[str, Any],
    keep_importance: float,
    *,
    active: Keep | None = None,
    standing: Keep | None = None,
    min_units: Limit = 1,
    max_units: Limit = None,
    steps: Limit = 1,
    tolerance: float = 1e-3,
) -> Fastest:
    """The least latency at which ``keep_importance``, a sum of scores, can be kept.

    The best importance rises with the budget, so the budget is bisected: one whose bound is under the importance
    is proved too small, one whose answer keeps it is large enough. Where a budget is neither, it is given up as
    too small without proof, which the gap then shows.

    Args:
        tolerance: the bisection ends when its ends are this share apart. The rest as for ``solve``.

    Raises:
        UsageError: bad input, or more importance than there is.
    """
    limits: dict[str, Any] = {"min_units": min_units, "max_units": max_units, "steps": steps}
    problem = build(cost, importance, 1.0, active=active, standing=standing, **limits)
    wanted, whole = _number(keep_importance), problem.value(problem.most)
    if not math.isfinite(wanted) or wanted < 0.0 or wanted > whole * (1.0 + 1e-12):
        raise UsageError(
            "no widths can keep that importance",
            f"keep_importance is {keep_importance!r}, and all units that may be kept have {whole:.6g}",
            f"Ask for 0 to {whole:.6g}",
        )
    start = time.perf_counter()
    enough = wanted * (1.0 - 1e-12)
    low_ms, best, best_ms = 0.0, problem.most, problem.predict_ms(problem.most)
    bound = whole
    if problem.groups:
        network, floor = compile_network(problem), find_floor(problem)
        low_ms = floor.least_ms
        if problem.value(floor.widths) >= enough:
            best, best_ms = floor.widths, floor.reached_ms
        high_ms, unsure_ms = best_ms, min(low_ms, best_ms)
        for _ in range(_BISECTIONS):
            if high_ms - unsure_ms <= tolerance * high_ms:
                break
            middle = (unsure_ms + high_ms) / 2.0
            asked = replace(problem, budget_ms=middle)
            if middle < floor.reached_ms:
                unsure_ms = middle
                continue
            solved = solve_problem(asked, "joint", tolerance=tolerance / 10.0, network=network, start=floor.widths)
            if solved.value >= enough:
                best, best_ms, bound = solved.widths, problem.predict_ms(solved.widths), solved.bound
                high_ms = min(middle, best_ms)
                continue
            unsure_ms = middle
            if solved.bound < enough:
                low_ms = max(low_ms, middle)
    stated = replace(problem, budget_ms=best_ms)
    value = problem.value(best)
    answer = to_answer(stated, cost, Solved(best, value, max(bound, value)), "joint", time.perf_counter() - start)
    verify(answer, cost, decided_scores(problem, importance), active=active, standing=standing)
    least_ms = min(low_ms, answer.latency_ms)
    return Fastest(answer, wanted, least_ms, (answer.latency_ms - least_ms) / answer.latency_ms)


def solve_all(
    costs: Mapping[str, tuple[Any, float]],
    importance: Mapping[str, Any],
    *,
    active: Keep | None = None,
    standing: Keep | None = None,
    min_units: Limit = 1,
    max_units: Limit = None,
    steps: Limit = 1,
    tolerance: float = 1e-3,
) -> tuple[Answer, dict[str, float]]:
    """One choice of units that holds several budgets: two devices, or batch 1 and batch 32.

    Any weighted sum of the costs must stay within the weighted sum of the budgets, so the best importance under
    the sum alone bounds the answer for every weighting (the surrogate relaxation; F. Glover, Operations
    Research 16 (1968)). Weights are moved towards the budgets that the answer misses. An answer comes from
    the weighted problem itself where it holds all budgets, else from the same with the sum's budget lowered until
    it does.

    Args:
        costs: label -> (cost model, budget in ms), all of one graph.

    Returns:
        The answer and the latency of every label in ms. The answer's ``latency_ms`` and ``budget_ms`` are those of
        the budget that is used up most.

    Raises:
        UsageError: bad input. TargetError: a budget under the floor, or no widths found that hold all.
    """
    if not costs:
        raise UsageError("several budgets cannot be met", "no cost model was given", "Give at least one")
    start = time.perf_counter()
    limits: dict[str, Any] = {"min_units": min_units, "max_units": max_units, "steps": steps}
    problems = {
        label: build(cost, importance, budget_ms, active=active, standing=standing, **limits)
        for label, (cost, budget_ms) in costs.items()
    }
    first = next(iter(problems.values()))
    for label, problem in problems.items():
        if [(g.name, g.size) for g in problem.groups] != [(g.name, g.size) for g in first.groups]:
            raise UsageError(
                "several budgets cannot be met at once",
                f"the cost model {label!r} decides other groups than {next(iter(problems))!r}",
                "Build all cost models from one graph",
            )
    labels = list(problems)
    weights = np.full(len(labels), 1.0 / len(labels))
    bound, best = first.value(first.most), None

    def used(widths: np.ndarray) -> np.ndarray:
        return np.array([problems[label].predict_ms(widths) / problems[label].budget_ms for label in labels])

    def offer(widths: np.ndarray) -> None:
        nonlocal best
        if (used(widths) <= 1.0).all() and (best is None or first.value(widths) > first.value(best)):
            best = widths

    offer(first.most)
    for round_ in range(_PRICES):
        if best is not None and bound - first.value(best) <= tolerance * bound:
            break
        merged = _weighted([problems[label] for label in labels], weights)
        network = compile_network(merged) if merged.groups else None
        try:
            solved = solve_problem(merged, "joint", tolerance=tolerance / 4.0, start=best, network=network)
        except TargetError:  # a weighted sum of the latencies is over that of the budgets whatever the widths
            break
        bound = min(bound, solved.bound)
        offer(solved.widths)
        share = used(solved.widths)
        if best is None or share.max() > 1.0:
            _lower(merged, network, float(share.max()), offer, used)
        # Towards what is over its budget, by ever smaller steps.
        weights = weights * np.exp((share - share.mean()) * 8.0 / (1.0 + 0.3 * round_))
        weights = np.maximum(weights / weights.sum(), 1e-6)
        weights /= weights.sum()
    if best is None:
        for label, problem in problems.items():
            floor_ms = find_floor(problem).reached_ms
            if floor_ms > problem.budget_ms:
                raise TargetError(
                    "the latency target cannot be met",
                    f"the budget of {label or 'the main table'!r} is {problem.budget_ms:.6g} ms, and the least that "
                    f"the widths allow there is {floor_ms:.6g} ms",
                    f"Ask for at least {floor_ms * 1.0001:.6g} ms there",
                )
        raise TargetError(
            "no widths were found that hold all budgets",
            ", ".join(f"{label}: {problems[label].budget_ms:.6g} ms" for label in labels),
            "Raise the tightest of them, or lower min_units or steps (--min-fraction, --width-step)",
        )
    value = first.value(best)
    tightest = labels[int(np.argmax(used(best)))]
    answer = to_answer(
        problems[tightest], costs[tightest][0], Solved(best, value, max(bound, value)), "joint",
        time.perf_counter() - start,
    )  # fmt: skip
    verify(answer, costs[tightest][0], decided_scores(first, importance), active=active, standing=standing)
    spent = {label: float(cost.predict(answer.widths)) for label, (cost, _) in costs.items()}
    for label, (_, budget_ms) in costs.items():
        if spent[label] > float(budget_ms) * (1.0 + 1e-9):
            raise CertificateError(
                "the solver's answer failed its check", f"{label!r} takes {spent[label]} ms of {budget_ms}",
                "This is a fault in halp-iee: please report it",
            )  # fmt: skip
    assert answer.gap == relative_gap(answer.value, answer.bound)
    return answer, spent


def _lower(merged: Problem, network: Network | None, over: float, offer: Any, used: Any) -> None:
    """Lower the weighted budget until its answer holds every budget."""
    low, high = 0.0, 1.0
    share = 1.0 / over
    for _ in range(6):
        if share * merged.budget_ms <= 0.0 or high - low <= _CLOSE:
            return
        worst = 0.0
        try:
            asked = replace(merged, budget_ms=share * merged.budget_ms)
            solved = solve_problem(asked, "joint", tolerance=1e-3, network=network)
        except TargetError:
            low = share
        else:
            offer(solved.widths)
            worst = float(used(solved.widths).max())
            if worst <= 1.0:
                low = share
            else:
                high = share
        # As far down as the answer was over, until one holds.
        share = (low + high) / 2.0 if low > 0.0 else share / worst * (1.0 - _CLOSE)


def _weighted(problems: Sequence[Problem], weights: np.ndarray) -> Problem:
    """The problem whose latency is the weighted share of every budget that is used up; its budget is 1."""
    layers = []
    parts = [(problem, float(weight) / problem.budget_ms) for problem, weight in zip(problems, weights, strict=True)]
    for problem, scale in parts:
        for layer in problem.layers:

            def ms(a: np.ndarray, b: np.ndarray, cost: Any = layer.ms, scale: float = scale) -> np.ndarray:
                return scale * cost(a, b)

            alike = None if layer.alike is None else (layer.alike, scale)
            layers.append(replace(layer, ms=ms, alike=alike))
    return replace(
        problems[0],
        layers=tuple(layers),
        fixed_ms=sum(scale * problem.fixed_ms for problem, scale in parts),
        budget_ms=1.0,
        dense_ms=sum(scale * problem.dense_ms for problem, scale in parts),
        predict_ms=lambda widths: sum(scale * problem.predict_ms(widths) for problem, scale in parts),
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
