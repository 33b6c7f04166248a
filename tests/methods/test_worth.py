"""What a structure is worth: groups in series, each taking its best units first."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_iee.errors import UsageError
from halp_iee.methods.config import HALPConfig, IEEConfig
from halp_iee.methods.worth import shares_in_series
from halp_iee.solve import solve
from tests.methods.conftest import World

importances = st.lists(st.just(0.0) | st.floats(1e-6, 1e3), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(importances, st.data())
def test_worths_add_up_to_the_logarithm_and_keep_the_order(values: list[float], data: st.DataObject) -> None:
    scores = np.array(values)
    held = np.array(sorted(data.draw(st.sets(st.integers(0, len(values) - 1)))), dtype=np.int64)
    worth = shares_in_series({"g": scores}, standing={"g": held})["g"]
    free = [i for i in range(len(values)) if i not in held]
    best = sorted(free, key=lambda i: -scores[i])
    assert all(np.diff(worth[best]) <= 1e-12)
    assert (worth >= 0).all()
    if len(held) and scores[held].sum() > 1e-3 * scores.sum():
        for k in range(len(best) + 1):
            taken = scores[held].sum() + scores[best[:k]].sum()
            assert worth[best[:k]].sum() == pytest.approx(math.log(taken / scores[held].sum()), abs=1e-5)
    elif not len(held) and scores.max() > 0:
        for k in range(2, len(best) + 1):
            ratio = math.log(scores[best[:k]].sum() / scores[best[0]])
            assert worth[best[1:k]].sum() == pytest.approx(ratio, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_what_may_not_be_kept_is_worth_nothing_and_what_is_not_asked_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = {"a": rng.random(9), "b": np.zeros(4)}
    active = {"a": np.sort(rng.choice(9, 5, replace=False)), "b": np.arange(2)}
    before = {name: values.copy() for name, values in scores.items()}
    worth = shares_in_series(scores, active=active)
    assert all(np.array_equal(scores[name], before[name]) for name in scores)
    assert not worth["a"][np.setdiff1d(np.arange(9), active["a"])].any()
    assert (worth["a"][active["a"]] > 0).all()
    assert (worth["b"][:2] > 0).all(), "a group whose units are worth nothing still gains from its first ones"


@pytest.mark.parametrize("seed", range(2))
def test_the_solver_finds_the_best_product_over_all_widths(seed: int, world: World) -> None:
    graph, cost = world.graph, world.cost
    rng = np.random.default_rng(seed)
    groups = [g for g in graph.groups if g.prunable]
    scores = {g.name: rng.random(g.size) ** 3 for g in groups}
    budget = 0.5 * cost.dense_ms
    answer = solve(cost, shares_in_series(scores), budget, "joint")

    def product(widths: dict[str, int]) -> float:
        return sum(math.log(np.sort(scores[n])[::-1][:w].sum()) for n, w in widths.items())

    found = product({g.name: len(answer.keep[g.name]) for g in groups})
    best = -math.inf
    for chosen in itertools.product(*(range(1, g.size + 1) for g in groups)):
        widths = {g.name: w for g, w in zip(groups, chosen, strict=True)}
        if cost.predict(widths) <= budget:
            best = max(best, product(widths))
    assert found >= best - 1e-3 * len(groups)


def test_an_objective_that_does_not_exist_is_refused() -> None:
    for config in (IEEConfig, HALPConfig):
        with pytest.raises(UsageError, match="objective='mean'"):
            config(objective="mean")  # type: ignore[arg-type]
