"""The same problem for OR-Tools' CP-SAT: the cross-check, and the fallback for odd networks.

One literal says that a group is at least as wide as each of its admissible widths; one choice a layer
picks its latency from the table. Latencies are rounded *up* to whole units for an answer that is truly
within the budget, importance is rounded *up* so that the solver's bound is one for the exact problem, and
the bound is taken from a second reading in which latencies are rounded *down*.

Suited to some tens of groups of some tens of admissible widths: use ``steps``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from halp_iee.errors import UsageError
from halp_iee.solve.joint import Solved, solve_joint
from halp_iee.solve.network import Network, compile_network
from halp_iee.solve.problem import Problem

_UNITS = 10_000_000
"""Whole units in the budget and in the total importance."""
_MOST_ENTRIES = 2_000_000


def solve_cp_sat(problem: Problem, *, time_limit_s: float = 30.0, warm: bool = True) -> Solved | None:
    """Widths and bound, or None when nothing within the budget was found.

    Args:
        time_limit_s: for each of the two readings.
        warm: start from the answer of ``joint``.

    Raises:
        UsageError: OR-Tools is not installed, or the tables are too large for it.
    """
    network = compile_network(problem)
    entries = sum(table.size for table in network.latencies.values())
    if entries > _MOST_ENTRIES:
        raise UsageError(
            "cp-sat cannot take this problem",
            f"its latency tables have {entries} entries, more than {_MOST_ENTRIES}",
            "Give steps of 8 or 16 units, or use the solver joint",
        )
    start = solve_joint(problem, total_work=0) if warm else None
    hint = start.widths if start is not None else None
    safe, _ = _run(problem, network, math.ceil, hint, time_limit_s)
    loose, bound = _run(problem, network, math.floor, hint if safe is None else safe, time_limit_s)
    answers = [widths for widths in (safe, loose, hint) if widths is not None]
    within = [widths for widths in answers if problem.first_within(widths[None, :]) is not None]
    if not within:
        return None
    best = max(within, key=problem.value)
    value = problem.value(best)
    return Solved(best, value, max(bound, value))


def _run(
    problem: Problem, network: Network, rounding: Any, hint: np.ndarray | None, time_limit_s: float
) -> tuple[np.ndarray | None, float]:
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise UsageError(
            "the solver cp-sat cannot run", "OR-Tools is not installed", "pip install ortools, or use joint"
        ) from None
    model = cp_model.CpModel()
    chosen: list[list[Any]] = []
    for v, variable in enumerate(network.variables):
        literals = [model.new_bool_var(f"v{v}={k}") for k in variable.grid]
        model.add_exactly_one(literals)
        chosen.append(literals)
    for relation in network.relations:
        sums = [
            per * sum(int(k) * x for k, x in zip(network.variables[v].grid, chosen[v], strict=True))
            for v, per in ((relation.a, relation.per_a), (relation.b, relation.per_b), (relation.total, 1))
        ]
        model.add(sums[0] + sums[1] == sums[2])
    # Whole units of latency: what is rounded is each table's entries, less a float that all share.
    unit_ms = problem.ceiling_ms / _UNITS
    cost, constant_ms = [], network.constant_ms
    for scope, table in network.latencies.items():
        low = float(table.min())
        constant_ms += low
        if len(scope) == 1:
            whole = _whole((table - low) / unit_ms, rounding)
            cost += [int(w) * x for w, x in zip(whole, chosen[scope[0]], strict=True) if w]
            continue
        whole = _whole((table - low) / unit_ms, rounding)
        latency = model.new_int_var(0, int(whole.max()), f"t{scope}")
        for i, left in enumerate(chosen[scope[0]]):
            # Given the first width, the latency is what the second one says.
            terms = [int(w) * x for w, x in zip(whole[i], chosen[scope[1]], strict=True) if w]
            model.add(latency >= sum(terms)).only_enforce_if(left)
        cost.append(latency)
    model.add(sum(cost) <= math.floor((problem.ceiling_ms - constant_ms) / unit_ms))
    count = len(problem.groups)
    top = max(problem.value(problem.most), 1e-300)
    gains = [np.ceil(variable.values / top * _UNITS).astype(np.int64) for variable in network.variables[:count]]
    model.maximize(sum(int(w) * x for g in range(count) for w, x in zip(gains[g], chosen[g], strict=True) if w))
    if hint is not None:
        for g in range(count):
            for k, literal in zip(network.variables[g].grid, chosen[g], strict=True):
                model.add_hint(literal, int(k == hint[g]))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    # OR-Tools' own handler would leave the process without Python's: the next Ctrl-C would kill it in mid-write.
    solver.parameters.catch_sigint_signal = False
    status = solver.solve(model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        widths = np.array(
            [
                next(int(k) for k, x in zip(network.variables[g].grid, chosen[g], strict=True) if solver.value(x))
                for g in range(count)
            ]
        )
        return widths, solver.best_objective_bound * top / _UNITS
    # A claim of infeasibility is not believed without proof: the bound stays trivial.
    return None, problem.value(problem.most)


def _whole(values: np.ndarray, rounding: Any) -> np.ndarray:
    return (np.ceil(values) if rounding is math.ceil else np.floor(values)).astype(np.int64)
