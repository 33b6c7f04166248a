"""Least latency for an importance and several budgets at once, against enumeration."""

import numpy as np
import pytest

from halp_iee.errors import TargetError, UsageError
from halp_iee.solve import frontier_all, solve_all, solve_latency
from tests.solve.fakes import TableCost, TableLayer, every_choice, make_table, random_cost, random_importance


def question(seed):
    rng = np.random.default_rng(seed)
    cost = random_cost(rng)
    return rng, cost, random_importance(rng, cost.sizes)


def other_device(rng, cost):
    layers = tuple(
        TableLayer(la.name, la.c_in, la.c_out, make_table(rng, la.c_in.full, la.c_out.full, "staircase"))
        for la in cost.layers
    )
    return TableCost(layers, 0.1, cost.sizes)


def test_the_least_latency_for_an_importance_is_near_the_true_one_and_never_proved_above_it():
    for seed in range(60):
        rng, cost, importance = question(seed)
        wanted = rng.random() * sum(float(s.sum()) for s in importance.values())
        found = solve_latency(cost, importance, wanted, tolerance=1e-4)
        truth = min(t for _, v, t in every_choice(cost, importance) if v >= wanted * (1 - 1e-12))
        kept = sum(importance[name][units].sum() for name, units in found.answer.keep.items())
        assert kept >= wanted * (1 - 1e-9)
        assert found.least_ms <= truth * (1 + 1e-9)
        assert truth * (1 - 1e-9) <= found.answer.latency_ms <= truth * 1.001


@pytest.mark.parametrize("wanted", [-1.0, float("nan"), 1e9, "much"])
def test_an_importance_that_cannot_be_kept_is_refused_with_its_value(wanted):
    _, cost, importance = question(1)
    with pytest.raises(UsageError, match="keep_importance is"):
        solve_latency(cost, importance, wanted)


def test_one_network_holds_two_budgets_and_its_bound_is_never_under_the_optimum():
    shares = []
    for seed in range(60):
        rng, cost, importance = question(seed)
        other = other_device(rng, cost)
        low = [min(t for _, _, t in every_choice(c, importance)) for c in (cost, other)]
        share = rng.uniform(0.4, 0.9)
        budgets = [lo + share * (c.dense_ms - lo) for lo, c in zip(low, (cost, other), strict=True)]
        both = [v for w, v, t in every_choice(cost, importance) if t <= budgets[0] and other.predict(w) <= budgets[1]]
        if not both:
            continue
        costs = {"here": (cost, budgets[0]), "there": (other, budgets[1])}
        try:
            answer, spent = solve_all(costs, importance)
        except TargetError:
            shares.append(0.0)
            continue
        assert spent["here"] <= budgets[0] * (1 + 1e-9)
        assert spent["there"] <= budgets[1] * (1 + 1e-9)
        assert answer.bound >= max(both) - 1e-9
        assert answer.value <= max(both) + 1e-9
        shares.append(answer.value / max(both))
    assert np.mean(shares) > 0.97


def test_every_point_of_a_frontier_holds_the_further_budget_and_no_bound_is_under_the_optimum():
    points = 0
    for seed in range(40):
        rng, cost, importance = question(seed)
        other = other_device(rng, cost)
        other_ms = rng.uniform(0.5, 0.95) * other.dense_ms
        choices = [(v, t) for w, v, t in every_choice(cost, importance) if other.predict(w) <= other_ms]
        if not choices:
            with pytest.raises(TargetError):
                frontier_all(cost, {"there": (other, other_ms)}, importance, 4)
            continue
        found = frontier_all(cost, {"there": (other, other_ms)}, importance, 4)
        points += len(found)
        assert [a.value for a, _ in found] == sorted(a.value for a, _ in found)
        for answer, spent in found:
            assert answer.latency_ms == pytest.approx(cost.predict(answer.widths))
            assert answer.latency_ms <= answer.budget_ms * (1 + 1e-9)
            assert spent == {"there": pytest.approx(other.predict(answer.widths))}
            assert spent["there"] <= other_ms * (1 + 1e-9)
            best = max((v for v, t in choices if t <= answer.budget_ms), default=0.0)
            assert answer.bound >= best - 1e-9
            assert answer.value <= best + 1e-9
        # The last point has no budget left that holds it off.
        assert found[-1][0].bound >= max(v for v, _ in choices) - 1e-9
    assert points > 60


def test_one_budget_alone_is_the_plain_question():
    for seed in range(20):
        _, cost, importance = question(seed)
        budget_ms = 0.8 * cost.dense_ms
        try:
            answer, spent = solve_all({"only": (cost, budget_ms)}, importance)
        except TargetError:
            continue
        truth = max(v for _, v, t in every_choice(cost, importance) if t <= budget_ms)
        assert answer.value >= truth * (1 - 2e-3)
        assert spent == {"only": pytest.approx(answer.latency_ms)}


def test_no_costs_or_budgets_that_cannot_be_met_are_clear_errors():
    _, cost, importance = question(3)
    with pytest.raises(UsageError, match="no cost model"):
        solve_all({}, importance)
    with pytest.raises(UsageError, match="budget_ms is nan"):
        solve_all({"a": (cost, float("nan"))}, importance)
    with pytest.raises(TargetError, match="the budget of 'b' is 1e-06 ms, and the least that the widths allow there"):
        solve_all({"a": (cost, cost.dense_ms), "b": (cost, 1e-6)}, importance)
