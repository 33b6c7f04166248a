"""Every solver against the truth: all combinations of widths of small random networks."""

import numpy as np
import pytest

from halp_iee.errors import TargetError
from halp_iee.solve import build, floor_ms, solve
from halp_iee.solve.dual import Oracle, minimise_dual
from halp_iee.solve.joint import solve_joint
from halp_iee.solve.network import cell_starts, compile_network, cut
from halp_iee.solve.order import elimination_order
from tests.solve.fakes import every_choice, random_cost, random_importance

EXACT = 1e-9


def random_question(seed, **sizes):
    """A cost, scores, a budget, and the most importance within it."""
    rng = np.random.default_rng(seed)
    cost = random_cost(rng, **sizes)
    importance = random_importance(rng, cost.sizes)
    choices = list(every_choice(cost, importance))
    value = np.array([choice[1] for choice in choices])
    latency = np.array([choice[2] for choice in choices])
    if rng.random() < 0.5:
        budget_ms = float(rng.choice(latency))  # exactly what some choice costs
    else:
        budget_ms = float(rng.uniform(latency.min(), latency.max()))
    return cost, importance, budget_ms, float(value[latency <= budget_ms].max())


@pytest.mark.parametrize("solver", ["joint", "halp", "cp-sat"])
@pytest.mark.parametrize("block", range(4))
def test_no_answer_is_over_budget_and_no_bound_is_under_the_optimum(solver, block):
    if solver == "cp-sat":
        pytest.importorskip("ortools")
    for seed in range(100 * block, 100 * block + (15 if solver == "cp-sat" else 80)):
        cost, importance, budget_ms, optimum = random_question(seed)
        answer = solve(cost, importance, budget_ms, solver)
        assert answer.latency_ms <= budget_ms, seed
        assert answer.latency_ms == cost.predict(answer.widths)
        assert answer.value <= optimum + EXACT, seed
        assert answer.bound >= optimum - EXACT, seed
        if solver != "halp":
            assert answer.value >= optimum * (1 - 2e-4), seed


def test_branch_and_bound_alone_closes_the_gap():
    for seed in range(1000, 1100):
        cost, importance, budget_ms, optimum = random_question(seed)
        problem = build(cost, importance, budget_ms)
        if problem.predict_ms(problem.most) <= budget_ms:
            continue
        solved = solve_joint(problem, 0.0, enumerate_at=1)
        if solved is None:
            continue  # then solve falls back to the floor
        assert solved.bound >= optimum - EXACT, seed
        assert solved.value == pytest.approx(optimum, rel=1e-9), seed


def test_joint_keeps_at_least_what_halp_keeps():
    for seed in range(2000, 2150):
        cost, importance, budget_ms, _ = random_question(seed, most_groups=6, most_units=4)
        joint = solve(cost, importance, budget_ms)
        halp = solve(cost, importance, budget_ms, "halp")
        assert joint.value >= halp.value - EXACT, seed
        assert joint.bound >= halp.value - EXACT, seed


@pytest.mark.parametrize("cells", [1, 2, 3])
@pytest.mark.parametrize("cap", [1 << 20, 12])
def test_bounds_hold_with_cells_of_any_width_and_tables_split_in_parts(cells, cap):
    for seed in range(3000, 3080):
        cost, importance, budget_ms, optimum = random_question(seed)
        network = compile_network(build(cost, importance, budget_ms))
        starts = tuple(cell_starts(variable, cells) for variable in network.variables)
        order = elimination_order([len(start) for start in starts], network.scopes, network.relations)
        result = minimise_dual(Oracle(cut(network, starts), order, cap), budget_ms)
        assert result.bound >= optimum - EXACT, seed
        assert result.least_ms <= min(latency for _, _, latency in every_choice(cost, importance)) + EXACT


def test_the_floor_is_the_least_latency_and_no_budget_under_it_is_answered():
    for seed in range(4000, 4080):
        cost, importance, _, _ = random_question(seed)
        least = min(latency for _, _, latency in every_choice(cost, importance))
        assert floor_ms(cost, importance) == pytest.approx(least, rel=1e-12)
        for solver in ("joint", "halp"):
            assert solve(cost, importance, floor_ms(cost, importance), solver).latency_ms == pytest.approx(least)
            with pytest.raises(TargetError, match="of the dense") as failure:
                solve(cost, importance, least * 0.999, solver)
            assert failure.value.exit_code == 4


def test_equal_questions_get_equal_answers():
    for seed in range(5000, 5020):
        cost, importance, budget_ms, _ = random_question(seed)
        first, second = solve(cost, importance, budget_ms), solve(cost, importance, budget_ms)
        assert first.widths == second.widths
        assert first.bound == second.bound
