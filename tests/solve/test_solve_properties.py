"""What holds for every question, by random search: budgets, bounds, and the label pass by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_iee.errors import HalpError, TargetError
from halp_iee.solve import build, floor_ms, solve
from halp_iee.solve.dual import Oracle, minimise_dual
from halp_iee.solve.labels import TooManyLabelsError, close
from halp_iee.solve.network import compile_network, cut
from halp_iee.solve.order import elimination_order
from halp_iee.solve.search import Search
from tests.solve.fakes import every_choice, random_cost, random_importance


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 1.2), st.sampled_from(["joint", "halp"]))
def test_no_budget_is_passed_no_bound_is_under_the_optimum_and_joint_is_never_under_halp(seed, share, solver):
    rng = np.random.default_rng(seed)
    cost = random_cost(rng)
    importance = random_importance(rng, cost.sizes)
    low = floor_ms(cost, importance)
    budget_ms = low + share * max(0.0, cost.dense_ms - low)
    answer = solve(cost, importance, budget_ms, solver)
    optimum = max(value for _, value, ms in every_choice(cost, importance) if ms <= budget_ms)
    assert answer.latency_ms <= budget_ms
    assert answer.bound >= optimum * (1 - 1e-12)
    assert answer.value <= optimum * (1 + 1e-12)
    if solver == "halp":
        # At equal true latency: the budget that halp really used.
        assert solve(cost, importance, answer.latency_ms * (1 + 1e-12)).value >= answer.value * (1 - 1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 4, 1000]), st.floats(0.0, 1.0))
def test_a_label_pass_never_promises_less_than_the_optimum(seed, most, share):
    rng = np.random.default_rng(seed)
    cost = random_cost(rng)
    importance = random_importance(rng, cost.sizes)
    choices = [(value, ms) for _, value, ms in every_choice(cost, importance)]
    least = min(ms for _, ms in choices)
    budget_ms = least + rng.random() * max(0.0, cost.dense_ms - least)
    optimum = max(value for value, ms in choices if ms <= budget_ms)
    problem = build(cost, importance, budget_ms)
    network = compile_network(problem)
    sizes = [len(variable.grid) for variable in network.variables]
    order = elimination_order(sizes, network.scopes, network.relations)
    oracle = Oracle(cut(network, tuple(np.arange(size) for size in sizes)), order, 1 << 30)
    result = minimise_dual(oracle, problem.ceiling_ms)
    if not 0.0 < result.price < np.inf:
        return
    above = share * optimum
    try:
        found = close(oracle, result.price, problem.ceiling_ms, above, most)
    except TooManyLabelsError:
        return
    assert max(found.bound, above) >= optimum * (1 - 1e-9)
    assert found.bound <= max(result.bound, above) * (1 + 1e-9) + 1e-12
    search = Search(network)
    for cells in found.choices:  # sums are those of their parts
        np.testing.assert_array_equal(search.all_variables(cells[: search.count]), cells)
    if most == 1000 and share < 0.9:  # nothing had to be merged: the pass is exact
        assert found.bound == pytest.approx(optimum, rel=2e-3)


@pytest.mark.parametrize("start", [1e-6, 0.3, 1.0, 3.0, 1e6])
def test_the_dual_is_the_same_wherever_the_search_for_its_price_starts(start):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cost = random_cost(rng)
        problem = build(cost, random_importance(rng, cost.sizes), 0.7 * cost.dense_ms)
        network = compile_network(problem)
        sizes = [len(variable.grid) for variable in network.variables]
        order = elimination_order(sizes, network.scopes, network.relations)
        oracle = Oracle(cut(network, tuple(np.arange(size) for size in sizes)), order, 1 << 30)
        plain = minimise_dual(oracle, problem.ceiling_ms)
        near = minimise_dual(oracle, problem.ceiling_ms, start * (plain.price or 1.0))
        assert near.bound == pytest.approx(plain.bound, rel=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([float("nan"), float("-inf"), -1.0, -1e-300, float("inf")]),
    st.sampled_from(["joint", "halp"]),
)
def test_one_bad_score_anywhere_is_named_with_group_unit_and_value(seed, bad, solver):
    rng = np.random.default_rng(seed)
    cost = random_cost(rng)
    importance = random_importance(rng, cost.sizes)
    name = list(cost.sizes)[int(rng.integers(len(cost.sizes)))]
    unit = int(rng.integers(cost.sizes[name]))
    importance[name] = importance[name].copy()
    importance[name][unit] = bad
    with pytest.raises(HalpError) as caught:
        solve(cost, importance, cost.dense_ms, solver)
    for part in (repr(name), f"unit {unit}", str(bad)):
        assert part in str(caught.value)


def test_limits_that_hold_the_target_off_are_named_with_the_options_that_lower_them():
    rng = np.random.default_rng(1)
    cost = random_cost(rng)
    importance = random_importance(rng, cost.sizes)
    with pytest.raises(TargetError, match="every group is at its least"):
        solve(cost, importance, 1e-9)
    with pytest.raises(TargetError, match="--min-fraction"):
        solve(cost, importance, floor_ms(cost, importance) * 1e-3, min_units=dict(cost.sizes))


def test_an_interrupted_solve_raises_and_the_next_one_answers_as_if_nothing_had_happened(monkeypatch):
    from halp_iee.solve import dual

    rng = np.random.default_rng(5)
    cost = random_cost(rng)
    importance = random_importance(rng, cost.sizes)
    budget_ms = 0.5 * (cost.dense_ms + floor_ms(cost, importance))
    before = solve(cost, importance, budget_ms)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dual.Oracle, "choose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            solve(cost, importance, budget_ms)
    after = solve(cost, importance, budget_ms)
    assert after.widths == before.widths
    assert after.bound == before.bound
