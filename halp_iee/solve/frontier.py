"""Importance against latency: many budgets, one set of tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from halp_iee.errors import TargetError, UsageError
from halp_iee.solve.answer import Answer, relative_gap
from halp_iee.solve.api import decided_scores, solve_problem, to_answer
from halp_iee.solve.build import Limit, build, check_budget
from halp_iee.solve.floor import find_floor
from halp_iee.solve.multi import solve_all
from halp_iee.solve.network import compile_network
from halp_iee.solve.problem import Problem
from halp_iee.solve.verify import verify

if TYPE_CHECKING:
    from halp_iee.graph.records import Keep


def frontier(
    cost: Any,
    importance: Mapping[str, Any],
    budgets_ms: Sequence[float] | int = 20,
    *,
    active: Keep | None = None,
    standing: Keep | None = None,
    min_units: Limit = 1,
    max_units: Limit = None,
    steps: Limit = 1,
    tolerance: float = 1e-3,
) -> list[Answer]:
    """The best answer for each budget, by rising budget; importance never falls along the list.

    Tables and elimination order are made once, and each answer is where the next one starts.

    Args:
        budgets_ms: the budgets, or how many evenly spaced ones between the floor and the latency of
            everything that may be kept. The rest as for ``solve``.

    Raises:
        UsageError: bad input. TargetError: a budget under the floor.
    """
    problem = build(
        cost, importance, 1.0, active=active, standing=standing,
        min_units=min_units, max_units=max_units, steps=steps,
    )  # fmt: skip
    budgets = _budgets(problem, budgets_ms)
    network = compile_network(problem) if problem.groups else None
    answers: list[Answer] = []
    widths: np.ndarray | None = None
    for budget_ms in budgets:
        start = time.perf_counter()
        stated = replace(problem, budget_ms=budget_ms)
        solved = solve_problem(stated, "joint", tolerance=tolerance, network=network, start=widths)
        widths = solved.widths
        answer = to_answer(stated, cost, solved, "joint", time.perf_counter() - start)
        verify(answer, cost, decided_scores(problem, importance), active=active, standing=standing)
        answers.append(answer)
    return answers


def frontier_all(
    cost: Any,
    others: Mapping[str, tuple[Any, float]],
    importance: Mapping[str, Any],
    budgets_ms: Sequence[float] | int = 20,
    **limits: Any,
) -> list[tuple[Answer, dict[str, float]]]:
    """The same where every answer also holds further budgets, which stay as they are.

    Args:
        cost: whose budget is swept.
        others: label -> (cost model, budget in ms), all of one graph; at least one.
        limits: ``active``, ``standing``, ``min_units``, ``max_units`` and ``steps`` as for ``solve``.

    Returns:
        For each budget that can be held with the others, by rising budget: the answer, its latency and budget those of
        ``cost``, and the latency of every other label in ms.

    Raises:
        UsageError: bad input. TargetError: none of the budgets can be held with the others.
    """
    problem = build(cost, importance, 1.0, **limits)
    # Without a budget here: from the latency of that on, nothing changes.
    most, most_ms = solve_all(dict(others), importance, **limits)
    most_ms = {"": float(cost.predict(most.widths)), **most_ms}
    top_ms = most_ms.pop("")
    budgets = _budgets(problem, budgets_ms, top_ms)
    found: list[tuple[Answer, dict[str, float]]] = []
    for budget_ms in budgets:
        if budget_ms >= top_ms:
            answer, spent_ms = replace(most, latency_ms=top_ms, budget_ms=budget_ms), most_ms
        else:
            try:
                answer, spent_ms = solve_all({"": (cost, budget_ms), **others}, importance, **limits)
            except TargetError:
                continue
            answer = replace(answer, latency_ms=spent_ms.pop(""), budget_ms=budget_ms)
        if found and found[-1][0].value > answer.value:
            before, spent_ms = found[-1]
            gap = relative_gap(before.value, answer.bound)
            answer = replace(before, bound=answer.bound, gap=gap, seconds=answer.seconds, budget_ms=budget_ms)
        found.append((answer, spent_ms))
    if not found:
        raise TargetError(
            "no frontier", f"with the further budgets no budget of {budgets[-1]:.6g} ms or less can be held",
            f"Ask for budgets of up to {top_ms:.6g} ms",
        )  # fmt: skip
    return found


def _budgets(problem: Problem, budgets_ms: Sequence[float] | int, top_ms: float | None = None) -> list[float]:
    """The budgets given, rising, or that many from the floor to ``top_ms``, the latency of all that may be kept."""
    if not isinstance(budgets_ms, int):
        return sorted(check_budget(budget) for budget in budgets_ms)
    if budgets_ms < 1:
        raise UsageError("no frontier", f"{budgets_ms} points were asked for", "Ask for at least one")
    top_ms = problem.predict_ms(problem.most) if top_ms is None else top_ms
    floor_ms = find_floor(problem).reached_ms if problem.groups else top_ms
    # Non-monotone tables: the floor may be a little under a top that is not the slowest.
    return np.unique(np.append(np.linspace(floor_ms, top_ms, budgets_ms)[:-1], top_ms)).tolist()
