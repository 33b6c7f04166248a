"""Public knapsack problems: instances by published formulas, with the optimum of an independent program."""

import itertools

import numpy as np
import pytest

from halp_iee.graph.records import Width
from halp_iee.solve import solve, solve_all
from tests.solve.fakes import TableCost, TableLayer
from tests.solve.test_solve_parts import best_knapsack, separable

R = 100


def pisinger(kind, count, rng):
    """Weights and profits of one of the classes of D. Pisinger, "Where are the hard knapsack problems?",
    Computers & Operations Research 32 (2005), section 3, with data range R."""
    w = rng.integers(1, R + 1, count)
    if kind == "uncorrelated":
        p = rng.integers(1, R + 1, count)
    elif kind == "weakly correlated":
        p = np.maximum(1, rng.integers(w - R // 10, w + R // 10 + 1))
    elif kind == "strongly correlated":
        p = w + R // 10
    elif kind == "inverse strongly correlated":
        p = rng.integers(1, R + 1, count)
        w = p + R // 10
    elif kind == "almost strongly correlated":
        p = rng.integers(w + R // 10 - R // 500, w + R // 10 + R // 500 + 1)
    elif kind == "subset sum":
        p = w
    elif kind == "similar weights":
        w, p = rng.integers(10 * R, 10 * R + 10, count), rng.integers(1, R + 1, count)
    elif kind == "profit ceiling":
        p = 3 * -(-w // 3)
    else:  # circle
        p = np.floor(2 / 3 * np.sqrt(4 * R**2 - (w - 2 * R) ** 2)).astype(int)
    return w.tolist(), p.tolist()


KINDS = (
    "uncorrelated", "weakly correlated", "strongly correlated", "inverse strongly correlated",
    "almost strongly correlated", "subset sum", "similar weights", "profit ceiling", "circle",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["joint", "halp"])
def test_the_published_classes_are_solved_to_the_optimum(kind, solver):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        weights, profits = pisinger(kind, 16, rng)
        capacity = int((seed + 1) / 4 * sum(weights))
        optimum = best_knapsack(weights, profits, capacity)
        cost, scores = separable(weights, profits)
        answer = solve(cost, scores, float(capacity), solver, tolerance=0.0, resolution_ms=1.0)
        offset = max(profits) * len(weights)
        assert answer.latency_ms <= capacity
        assert answer.bound - offset >= optimum - 1e-6
        assert answer.value - offset == pytest.approx(optimum, abs=1e-6)


def best_multiple_choice(classes, capacity):
    """The optimum of a multiple-choice knapsack: one (weight, profit) of every class; -1 where nothing fits."""
    best = [0] + [-1] * capacity
    for options in classes:
        following = [-1] * (capacity + 1)
        for room, value in enumerate(best):
            for weight, profit in options:
                if value >= 0 and room + weight <= capacity:
                    following[room + weight] = max(following[room + weight], value + profit)
        best = following
    return max(best)


@pytest.mark.parametrize("solver", ["joint", "halp"])
def test_multiple_choice_knapsacks_are_solved_to_the_optimum(solver):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sizes = {f"class{i}": int(rng.integers(2, 7)) for i in range(int(rng.integers(2, 8)))}
        layers, scores, classes = [], {}, []
        for name, size in sizes.items():
            weights = np.sort(rng.integers(1, 40, size))  # weakly correlated, rising, as prefixes are
            gains = np.sort(rng.integers(1, 30, size))[::-1]
            table = np.zeros((1 + 1, size + 1))
            table[1, 1:] = weights
            layers.append(TableLayer(name, Width((), 1), Width(((name, size, 1),)), table))
            scores[name] = gains.astype(float)
            classes.append(list(zip(weights.tolist(), np.cumsum(gains).tolist(), strict=True)))
        low, high = (sum(options[i][0] for options in classes) for i in (0, -1))
        capacity = int(low + rng.random() * (high - low))
        answer = solve(
            TableCost(tuple(layers), 0.0, sizes), scores, float(capacity), solver, tolerance=0.0, resolution_ms=1.0
        )
        assert answer.value == pytest.approx(best_multiple_choice(classes, capacity))
        assert answer.bound >= answer.value


# C. C. Petersen, Operations Research 15 (1967), problem 1, as in the OR-Library's mknap1; optimum 3800.
PETERSEN_PROFITS = [100, 600, 1200, 2400, 500, 2000]
PETERSEN = [
    (80, [8, 12, 13, 64, 22, 41]), (96, [8, 12, 13, 75, 22, 41]), (20, [3, 6, 4, 18, 6, 4]),
    (36, [5, 10, 8, 32, 6, 12]), (44, [5, 13, 8, 42, 6, 20]), (48, [5, 13, 8, 48, 6, 20]),
    (10, [0, 0, 0, 0, 8, 0]), (18, [3, 0, 4, 0, 8, 0]), (22, [3, 2, 4, 0, 8, 4]), (24, [3, 2, 4, 8, 8, 4]),
]  # fmt: skip


def test_a_published_knapsack_of_ten_budgets_is_bounded_and_held():
    feasible = [
        sum(p for p, x in zip(PETERSEN_PROFITS, chosen, strict=True) if x)
        for chosen in itertools.product((0, 1), repeat=6)
        if all(sum(w for w, x in zip(row, chosen, strict=True) if x) <= limit for limit, row in PETERSEN)
    ]
    assert max(feasible) == 3800
    costs = {}
    for i, (limit, row) in enumerate(PETERSEN):
        cost, scores = separable(row, PETERSEN_PROFITS)
        costs[f"row{i}"] = (cost, float(limit))
    answer, spent = solve_all(costs, scores)
    offset = max(PETERSEN_PROFITS) * 6
    assert all(spent[f"row{i}"] <= limit for i, (limit, _) in enumerate(PETERSEN))
    assert answer.bound - offset >= 3800 - 1e-6
    assert 0.9 * 3800 <= answer.value - offset <= 3800 + 1e-6
