"""``solve``: state the problem, choose a solver, check the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from halp_iee.errors import TargetError, UsageError
from halp_iee.solve.answer import Answer, relative_gap
from halp_iee.solve.build import Limit, build
from halp_iee.solve.floor import find_floor
from halp_iee.solve.halp import solve_halp
from halp_iee.solve.joint import Solved, bound_importance, solve_joint
from halp_iee.solve.network import Network
from halp_iee.solve.problem import Problem
from halp_iee.solve.verify import verify

if TYPE_CHECKING:
    from halp_iee.graph.records import Keep

SOLVERS = ("joint", "halp", "cp-sat")


def solve(
    cost: Any,
    importance: Mapping[str, Any],
    budget_ms: float,
    solver: str = "joint",
    *,
    active: Keep | None = None,
    standing: Keep | None = None,
    min_units: Limit = 1,
    max_units: Limit = None,
    steps: Limit = 1,
    tolerance: float = 5e-4,
    as_published: bool = False,
    resolution_ms: float | None = None,
    time_limit_s: float = 30.0,
) -> Answer:
    """Choose the units to keep: the most importance whose latency is within the budget.

    The arguments up to ``steps`` are those of ``build``.

    Args:
        solver: ``joint`` (default; exact latency of every layer, with a tight bound), ``halp`` (the paper's
            knapsack) or ``cp-sat`` (OR-Tools; a cross-check for networks of modest size).
        tolerance: ``joint`` stops working on the answer once its gap is at most this.
        as_published: ``halp`` only: the paper's single shot, which may miss the budget.
        resolution_ms: ``halp`` only: what one unit of the knapsack's capacity is worth.
        time_limit_s: ``cp-sat`` only.

    Returns:
        The answer, checked by ``verify``. A budget of the dense latency or more keeps everything.

    Raises:
        UsageError: bad input, with the offending name and value.
        TargetError: the budget is under the floor, which is said.
    """
    if solver not in SOLVERS:
        raise UsageError("the solver is not known", f"{solver!r}", f"Choose one of {', '.join(SOLVERS)}")
    for name, number in (("resolution_ms", resolution_ms), ("time_limit_s", time_limit_s)):
        if number is not None and not (math.isfinite(number) and number > 0.0):
            raise UsageError("the solver cannot run", f"{name} is {number!r}", "Give a positive number")
    if not 0.0 <= tolerance < 1.0:
        raise UsageError("the solver cannot run", f"tolerance is {tolerance!r}", "Give a share from 0 to 1")
    start = time.perf_counter()
    problem = build(
        cost, importance, budget_ms, active=active, standing=standing,
        min_units=min_units, max_units=max_units, steps=steps,
    )  # fmt: skip
    solved = solve_problem(
        problem, solver, tolerance=tolerance, as_published=as_published,
        resolution_ms=resolution_ms, time_limit_s=time_limit_s,
    )  # fmt: skip
    answer = to_answer(problem, cost, solved, solver, time.perf_counter() - start)
    verify(
        answer, cost, decided_scores(problem, importance), active=active, standing=standing,
        within_budget=not (as_published and solver == "halp"),
    )  # fmt: skip
    return answer


def solve_problem(
    problem: Problem,
    solver: str,
    *,
    tolerance: float = 5e-4,
    as_published: bool = False,
    resolution_ms: float | None = None,
    time_limit_s: float = 30.0,
    network: Network | None = None,
    start: np.ndarray | None = None,
) -> Solved:
    """The same for a stated problem, without the check; ``network`` and ``start`` as for ``solve_joint``."""
    most = problem.most
    if problem.predict_ms(most) <= problem.budget_ms:
        value = problem.value(most)
        return Solved(most, value, value)
    if not problem.groups:
        _raise_under_floor(problem, problem.predict_ms(most), None)
    if solver == "halp":
        if problem.least.min(initial=1) == 0:
            raise UsageError(
                "the solver halp cannot answer this",
                "branches may be removed, and it looks at one group at a time",
                "Use joint or cp-sat",
            )
        widths = solve_halp(problem, resolution_ms=resolution_ms, as_published=as_published)
        bound = bound_importance(problem)
        if widths is not None:
            return Solved(widths, problem.value(widths), max(bound, problem.value(widths)))
        solved = None
    elif solver == "cp-sat":
        from halp_iee.solve.cp_sat import solve_cp_sat  # OR-Tools is not needed otherwise

        solved = solve_cp_sat(problem, time_limit_s=time_limit_s)
    else:
        solved = solve_joint(problem, tolerance, network=network, start=start)
    if solved is not None:
        return solved
    floor = find_floor(problem)
    if floor.reached_ms > problem.budget_ms:
        _raise_under_floor(problem, floor.reached_ms, floor.least_ms)
    value = problem.value(floor.widths)
    return Solved(floor.widths, value, max(bound_importance(problem), value))


def floor_ms(
    cost: Any,
    importance: Mapping[str, Any],
    *,
    active: Keep | None = None,
    standing: Keep | None = None,
    min_units: Limit = 1,
    max_units: Limit = None,
    steps: Limit = 1,
) -> float:
    """The least latency in ms that the admissible widths reach; arguments as for ``solve``."""
    problem = build(
        cost, importance, 1.0, active=active, standing=standing,
        min_units=min_units, max_units=max_units, steps=steps,
    )  # fmt: skip
    return find_floor(problem).reached_ms


def decided_scores(problem: Problem, importance: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of the groups that were decided: those of frozen groups do not count."""
    return {group.name: importance[group.name] for group in problem.groups}


def to_answer(problem: Problem, cost: Any, solved: Solved, solver: str, seconds: float) -> Answer:
    keep = problem.keep(solved.widths)
    widths = {name: len(units) for name, units in keep.items()}
    return Answer(
        keep=keep,
        widths=widths,
        latency_ms=float(cost.predict(widths)),
        value=solved.value,
        bound=solved.bound,
        gap=relative_gap(solved.value, solved.bound),
        seconds=seconds,
        solver=solver,
        budget_ms=problem.budget_ms,
    )


def _raise_under_floor(problem: Problem, floor: float, least: float | None) -> None:
    share = floor / problem.dense_ms if problem.dense_ms > 0.0 else np.nan
    proved = "" if least is None or least >= floor * (1.0 - 1e-6) else f" (proved: not under {least:.6g} ms)"
    raise TargetError(
        "the latency target cannot be met",
        f"the budget is {problem.budget_ms:.6g} ms, and the least that the widths allow is {floor:.6g} ms, "
        f"{share:.3f} of the dense {problem.dense_ms:.6g} ms{proved}",
        f"Ask for at least {floor * 1.0001:.6g} ms ({share * 1.0001:.4f} of dense), or {_way_down(problem)}",
    )


def _way_down(problem: Problem) -> str:
    """What else than a higher target would help: the limits if there are any, else another network."""
    held = [g for g in problem.groups if g.widths[0] > max(1, g.standing)]  # those of branches may go
    if held:
        one = max(held, key=lambda g: g.widths[0])
        return (
            f"lower min_units or steps (--min-fraction, --width-step): they keep {one.widths[0]} of the {one.size} "
            f"units of {one.name!r}, and so in {len(held)} of {len(problem.groups)} groups"
        )
    return "take a network with fewer or cheaper layers: every group is at its least already"
