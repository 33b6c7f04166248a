"""Widths that are left out at a price: never one that matters, on any network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_iee.solve import build, joint, relax
from halp_iee.solve.network import compile_network, restrict
from halp_iee.solve.relax import Sharp, core
from halp_iee.solve.search import Search
from halp_iee.solve.thin import thin
from tests.solve.fakes import every_choice, random_cost, random_importance


def question(seed, share=0.5, units=7):
    """A problem, its network, and every choice as (widths in the problem's order, importance, ms)."""
    rng = np.random.default_rng(seed)
    cost = random_cost(rng, most_units=units)
    importance = random_importance(rng, cost.sizes)
    problem = build(cost, importance, max(1e-9, share * cost.dense_ms))
    choices = [
        (np.array([widths[group.name] for group in problem.groups]), value, ms)
        for widths, value, ms in every_choice(cost, importance)
    ]
    return rng, problem, compile_network(problem), choices


def holds(network, widths):
    return all(k in variable.grid for k, variable in zip(widths, network.variables, strict=False))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.floats(1.0, 3.0), st.floats(0.0, 0.3))
def test_every_choice_that_is_near_the_best_at_a_price_between_is_left(seed, apart, share):
    rng, _, network, choices = question(seed)
    price = float(rng.gamma(1.0, 1.0)) * choices[-1][1] / choices[-1][2]
    prices = (price, price * apart)
    for spare in (0.0, share * max(value for _, value, _ in choices)):
        left = thin(network, prices, spare)
        for at in (prices[0], 0.5 * sum(prices), prices[1]):
            worth = np.array([value - at * ms for _, value, ms in choices])
            best = worth.max()
            near = worth >= best - spare * (1.0 - 1e-9) + 1e-9 * abs(best)
            if spare == 0.0:
                kept = max((w for w, (k, _, _) in zip(worth, choices, strict=True) if holds(left, k)), default=-np.inf)
                assert kept == pytest.approx(best, rel=1e-9, abs=1e-9)
            else:
                assert all(holds(left, k) for k, _, _ in (choices[i] for i in np.flatnonzero(near)))


def test_dead_ends_are_found():
    found = 0
    for seed in range(40):
        _, _, network, choices = question(seed)
        price = choices[-1][1] / choices[-1][2]
        found += sum(len(v.grid) for v in thin(network, (price, price)).variables) < sum(
            len(v.grid) for v in network.variables
        )
    assert found >= 8


@pytest.mark.parametrize(("work", "often"), [(20, 0), (200, 25), (1 << 30, 60)])
def test_a_sharp_dual_is_never_under_the_true_one_and_equal_to_it_where_tables_are_not_too_wide(work, often):
    equal = 0
    for seed in range(60):
        rng, problem, network, choices = question(seed)
        price = float(rng.uniform(0.3, 3.0)) * choices[-1][1] / choices[-1][2]
        truth = max(value - price * (ms - problem.ceiling_ms) for _, value, ms in choices)
        sharp = Sharp(network, Search(network), problem.ceiling_ms, work)
        least, choice = sharp.choose(price)
        found = price * (problem.ceiling_ms - network.constant_ms) - least
        assert found >= truth - 1e-9 * (1.0 + abs(truth))
        assert choice.value - price * (choice.latency_ms - problem.ceiling_ms) <= truth + 1e-9 * (1.0 + abs(truth))
        equal += found == pytest.approx(truth, rel=1e-6, abs=1e-9)
    assert equal >= often


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4))
def test_leaving_dead_ends_out_again_only_where_it_matters_leaves_all_that_is_best(seed, shares):
    rng, problem, network, choices = question(seed)
    price = float(rng.uniform(0.3, 3.0)) * choices[-1][1] / choices[-1][2]
    worth = [value - price * (ms - problem.ceiling_ms) for _, value, ms in choices]
    best = max(worth)
    left = thin(network, (price, price), 0.0)
    for share in shares:
        # What some other argument rules out, always something that no best choice needs.
        needed = [widths for (widths, _, _), one in zip(choices, worth, strict=True) if one >= best - 1e-9 * abs(best)]
        before = [len(variable.grid) for variable in left.variables]
        kept = [np.arange(size) for size in before]
        for g in range(len(problem.groups)):
            if g not in left.in_relations:
                must = np.isin(left.variables[g].grid, [int(widths[g]) for widths in needed])
                kept[g] = np.flatnonzero(must | (rng.random(before[g]) < share))
        if any(len(index) == 0 for index in kept):
            return  # of equally good choices another one is left
        left = thin(restrict(left, kept), (price, price), 0.0, before)
        again = thin(left, (price, price), 0.0)
        assert any(holds(left, widths) for widths in needed)
        assert any(holds(again, widths) for widths in needed)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.2, 0.95), st.sampled_from([20, 300]))
def test_what_is_better_than_an_answer_is_never_left_out(seed, share, work):
    rng, problem, network, choices = question(seed, share)
    within = sorted(value for _, value, ms in choices if ms <= problem.budget_ms)
    if not within:
        return
    above = within[int(rng.integers(len(within)))]
    price = float(rng.gamma(1.0, 1.0)) * choices[-1][1] / choices[-1][2]
    most = max(value - price * (ms - problem.ceiling_ms) for _, value, ms in choices)
    most += float(rng.choice([0.0, 0.1])) * abs(most)
    above *= 1.0 + 1e-10
    left, _, _ = core(network, price, most, above, problem.ceiling_ms, work, None)
    for widths, value, ms in choices:
        if ms <= problem.budget_ms and value > above * (1.0 + 1e-9):
            assert left is not None
            assert holds(left, widths)


def test_problems_that_are_too_wide_for_one_table_end_in_the_optimum(monkeypatch):
    for module, name in ((relax, "_QUICK_WORK"), (joint, "_PASS_WORK"), (joint, "_FINE_WORK")):
        monkeypatch.setattr(module, name, 12)
    monkeypatch.setattr(joint, "_FIRST_SUM_WORK", 30)
    monkeypatch.setattr(joint, "_SUM_WORK", 30)
    answered, guessed = 0, []
    monkeypatch.setattr(joint, "scout", lambda *asked: guessed.append(relax.scout(*asked)) or guessed[-1])
    for seed in range(80):
        rng, problem, _, choices = question(seed, float(np.random.default_rng(seed).uniform(0.2, 0.95)))
        best = max((value for _, value, ms in choices if ms <= problem.budget_ms), default=None)
        if best is None or best == problem.value(problem.most):
            continue
        found = joint.solve_joint(problem, 0.0, enumerate_at=int(rng.choice([1, 30])))
        assert found is not None
        assert found.bound >= best * (1 - 1e-9)
        assert found.value == pytest.approx(best)
        answered += 1
    assert answered > 40
    assert sum(guess is not None for guess in guessed) >= 5
