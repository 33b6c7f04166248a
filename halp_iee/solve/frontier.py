"""Importance against latency: many budgets, one set of tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from halp_iee.errors import UsageError
from halp_iee.solve.answer import Answer
from halp_iee.solve.api import decided_scores, solve_problem, to_answer
from halp_iee.solve.build import Limit, build, check_budget
from halp_iee.solve.floor import find_floor
from halp_iee.solve.network import compile_network
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
    if isinstance(budgets_ms, int):
        if budgets_ms < 1:
            raise UsageError("no frontier", f"{budgets_ms} points were asked for", "Ask for at least one")
        top_ms = problem.predict_ms(problem.most)
        floor_ms = find_floor(problem).reached_ms if problem.groups else top_ms
        # Non-monotone tables: the floor may be a little under a top that is not the slowest.
        budgets = np.unique(np.append(np.linspace(floor_ms, top_ms, budgets_ms)[:-1], top_ms)).tolist()
    else:
        budgets = sorted(check_budget(budget) for budget in budgets_ms)
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
