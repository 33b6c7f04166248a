"""The parts by themselves: elimination, the knapsack, the check, the frontier."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from halp_iee.errors import UsageError
from halp_iee.graph.records import Width
from halp_iee.solve import CertificateError, build, frontier, joint, relax, solve, verify
from halp_iee.solve.dual import Oracle
from halp_iee.solve.eliminate import Elimination
from halp_iee.solve.floor import find_floor
from halp_iee.solve.halp import fill_knapsack
from halp_iee.solve.network import compile_network, cut, loosen, with_images
from halp_iee.solve.order import elimination_order
from tests.solve.fakes import TableCost, TableLayer, every_choice, random_cost, random_importance


def separable(weights, values):
    """A 0-1 knapsack as a network: an item is the second unit of a group of two that shares no layer."""
    sizes = {f"item{i}": 2 for i in range(len(weights))}
    layers = tuple(
        TableLayer(name, Width((), 1), Width(((name, 2, 1),)), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, w]]))
        for name, w in zip(sizes, map(float, weights), strict=True)
    )
    top = float(max(values))  # the unit that is always kept
    scores = {name: np.array([top, float(v)]) for name, v in zip(sizes, values, strict=True)}
    return TableCost(layers, 0.0, sizes), scores


def best_knapsack(weights, values, capacity):
    best = [0] * (capacity + 1)
    for weight, value in zip(weights, values, strict=True):
        for room in range(capacity, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[capacity]


# Instances and optima published with Burkardt's KNAPSACK_01 data (P01, P02, P03, P05, P06, P07).
PUBLISHED = [
    (165, [23, 31, 29, 44, 53, 38, 63, 85, 89, 82], [92, 57, 49, 68, 60, 43, 67, 84, 87, 72], 309),
    (26, [12, 7, 11, 8, 9], [24, 13, 23, 15, 16], 51),
    (190, [56, 59, 80, 64, 75, 17], [50, 50, 64, 46, 50, 5], 150),
    (104, [25, 35, 45, 5, 25, 3, 2, 2], [350, 400, 450, 20, 70, 8, 5, 5], 900),
    (170, [41, 50, 49, 59, 55, 57, 60], [442, 525, 511, 593, 546, 564, 617], 1735),
    (750, [70, 73, 77, 80, 82, 87, 90, 94, 98, 106, 110, 113, 115, 118, 120],
     [135, 139, 149, 150, 156, 163, 173, 184, 192, 201, 210, 214, 221, 229, 240], 1458),
]  # fmt: skip


@pytest.mark.parametrize(("capacity", "weights", "values", "optimum"), PUBLISHED)
@pytest.mark.parametrize("solver", ["joint", "halp", "cp-sat"])
def test_published_knapsacks_are_solved(solver, capacity, weights, values, optimum):
    if solver == "cp-sat":
        pytest.importorskip("ortools")
    assert best_knapsack(weights, values, capacity) == optimum
    cost, scores = separable(weights, values)
    answer = solve(cost, scores, float(capacity), solver, tolerance=0.0, resolution_ms=1.0)
    assert answer.value - max(values) * len(weights) == pytest.approx(optimum, abs=1e-3)


def test_random_knapsacks_are_solved_to_the_optimum_of_an_independent_program():
    rng = np.random.default_rng(0)
    for _ in range(30):
        count = int(rng.integers(3, 14))
        weights = rng.integers(1, 40, count).tolist()
        values = (np.array(weights) + rng.integers(0, 6, count)).tolist()  # correlated: the hard kind
        capacity = int(sum(weights) * rng.uniform(0.2, 0.8))
        optimum = best_knapsack(weights, values, capacity)
        knapsack = fill_knapsack([np.array([0, w]) for w in weights], [np.array([0.0, v]) for v in values], capacity)
        assert knapsack.best[capacity] == optimum
        chosen = knapsack.choices(np.array([capacity]))[0]
        assert sum(v for v, taken in zip(values, chosen, strict=True) if taken) == optimum
        assert sum(w for w, taken in zip(weights, chosen, strict=True) if taken) <= capacity


def full_points(network):
    """Every choice as grid indices of all variables, sums and images included."""
    count = len(network.problem.groups)
    sizes = [len(variable.grid) for variable in network.variables]
    for point in itertools.product(*(range(size) for size in sizes[:count])):
        full = list(point)
        for variable in network.variables[count:]:
            total = sum(per * network.variables[g].grid[point[g]] for g, per in variable.members)
            full.append(int(np.searchsorted(variable.grid, total)))
        yield full


@pytest.mark.parametrize("images", [False, True])
def test_elimination_finds_the_least_sum_and_every_marginal(images):
    ways = Counter()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cost = random_cost(rng, most_groups=4, most_units=4)
        network = compile_network(build(cost, random_importance(rng, cost.sizes), 1.0))
        network = with_images(network) if images else network
        sizes = [len(variable.grid) for variable in network.variables]
        order = elimination_order(sizes, network.scopes, network.relations, network.images)
        ways.update(going.how for going in order.goings)
        cells = cut(network, tuple(np.arange(size) for size in sizes))
        elimination = Elimination(cells, network.scopes, order, cap=1 << 30)
        assert elimination.exact
        tables = [rng.normal(size=[sizes[v] for v in scope]) for scope in network.scopes]
        marginals = [np.full(size, np.inf) for size in sizes]
        for full in full_points(network):
            weight = sum(
                table[tuple(full[v] for v in scope)] for scope, table in zip(network.scopes, tables, strict=True)
            )
            for v, i in enumerate(full):
                marginals[v][i] = min(marginals[v][i], weight)
        least, chosen = elimination.minimise(tables)
        assert least == pytest.approx(marginals[0].min())
        found = sum(table[tuple(chosen[v] for v in scope)] for scope, table in zip(network.scopes, tables, strict=True))
        assert found == pytest.approx(least)
        for mine, truth in zip(elimination.marginals(tables), marginals, strict=True):
            np.testing.assert_allclose(mine, truth, rtol=1e-9, atol=1e-9)
    assert {"plain", "relation"} | ({"expand", "collapse", "add"} if images else set()) <= set(ways)


@pytest.mark.parametrize("cap", [1 << 30, 40])
def test_coarse_cells_promise_at_least_what_is_true(cap):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cost = random_cost(rng, most_groups=4, most_units=6)
        problem = build(cost, random_importance(rng, cost.sizes), 1.0)
        plain = compile_network(problem)
        network = with_images(loosen(plain, float(rng.choice([0.0, 0.1 * cost.dense_ms]))))
        sizes = [len(variable.grid) for variable in network.variables]
        starts = [np.union1d(0, np.flatnonzero(rng.random(size) < 0.5)) for size in sizes]
        for v, image in network.images:
            starts[v] = np.union1d(starts[v], starts[image])
        order = elimination_order(sizes, network.scopes, network.relations, network.images)
        reference = np.array([rng.integers(size) for size in sizes])
        oracle = Oracle(cut(network, tuple(starts), reference if rng.random() < 0.5 else None), order, cap)
        price, budget_ms = rng.gamma(1.0, 1.0), cost.dense_ms * rng.uniform(0.2, 0.9)
        promised = price * (budget_ms - network.constant_ms) - oracle.choose(price)[0]
        reach = oracle.reach(price, budget_ms) if oracle.elimination.exact else None
        for full in full_points(network):
            widths = np.array([plain.variables[g].grid[full[g]] for g in range(len(problem.groups))])
            truth = problem.value(widths) - price * (float(problem.latency_ms(widths)) - budget_ms)
            assert promised >= truth - 1e-9 * (1.0 + abs(truth))
            if reach is not None:
                for v, i in enumerate(full):
                    cell = np.searchsorted(starts[v], i, side="right") - 1
                    assert reach[v][cell] >= truth - 1e-9 * (1.0 + abs(truth))


def test_sums_that_are_too_wide_for_one_table_still_end_in_the_optimum(monkeypatch):
    for module, name, work in (
        (relax, "_QUICK_WORK", 60), (joint, "_PASS_WORK", 100),
        (joint, "_FIRST_SUM_WORK", 150), (joint, "_SUM_WORK", 400),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, work)
    with_sums = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cost = random_cost(rng, most_groups=4, most_units=5)
        importance = random_importance(rng, cost.sizes)
        budget_ms = cost.dense_ms * rng.uniform(0.3, 0.95)
        problem = build(cost, importance, budget_ms)
        with_sums += bool(compile_network(problem).relations)
        choices = list(every_choice(cost, importance))
        best = max((value for _, value, ms in choices if ms <= budget_ms), default=None)
        floor = find_floor(problem)
        fastest = min(ms for _, _, ms in choices)
        assert floor.least_ms <= fastest * (1 + 1e-9)
        assert floor.reached_ms >= fastest * (1 - 1e-9)
        found = joint.solve_joint(problem, 0.0, enumerate_at=1)
        if best is None:
            assert found is None
            continue
        assert found is not None
        assert found.bound >= best * (1 - 1e-9)
        assert found.value == pytest.approx(best)
    assert with_sums > 20


def test_the_check_refuses_answers_that_were_tampered_with():
    rng = np.random.default_rng(3)
    cost = random_cost(rng)
    importance = {name: rng.gamma(1.0, 1.0, size) + 0.1 for name, size in cost.sizes.items()}
    answer = solve(cost, importance, 0.9 * cost.dense_ms)
    verify(answer, cost, importance)
    name = max(answer.widths, key=answer.widths.get)
    fewer = {**answer.keep, name: answer.keep[name][:-1]}
    for broken in (
        replace(answer, value=answer.value * 1.01),
        replace(answer, latency_ms=answer.latency_ms * 0.9),
        replace(answer, budget_ms=answer.latency_ms * 0.9),
        replace(answer, bound=answer.value * 0.99),
        replace(answer, keep=fewer),
        replace(answer, keep={**answer.keep, name: answer.keep[name][:0]}),
    ):
        with pytest.raises(CertificateError):
            verify(broken, cost, importance)
    with pytest.raises(CertificateError, match="not active"):
        verify(answer, cost, importance, active={name: answer.keep[name][:-1]})


def test_the_frontier_rises_and_holds_every_budget():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        cost = random_cost(rng)
        importance = random_importance(rng, cost.sizes)
        answers = frontier(cost, importance, 8)
        for low, high in itertools.pairwise(answers):
            assert low.budget_ms < high.budget_ms
            assert low.value <= high.value + 1e-9
        for answer in answers:
            assert answer.latency_ms <= answer.budget_ms * (1 + 1e-12)
            alone = solve(cost, importance, answer.budget_ms)
            assert answer.value >= alone.value * (1 - 2e-3)
        assert answers[-1].value == pytest.approx(sum(score.sum() for score in importance.values()))
    with pytest.raises(UsageError, match="points"):
        frontier(cost, importance, 0)


@pytest.mark.parametrize("settled", [0, 1, 2])
def test_a_hub_of_more_layers_than_an_array_has_axes_is_solved(settled):
    # What has one width left is an axis of length one: a hundred of them are one too many for an array.
    rng = np.random.default_rng(settled)
    sizes = {"hub": 4, **{f"spoke{i}": 3 for i in range(100)}}

    def alone(name):
        return Width(((name, sizes[name], 1),))

    layers = tuple(
        TableLayer(name, alone("hub"), alone(name), np.outer(np.arange(5) + 0.5, np.arange(4)) * rng.uniform(0.5, 1.5))
        for name in sizes
        if name != "hub"
    )
    cost = TableCost(layers, 0.1, sizes)
    scores = random_importance(rng, sizes)
    held = {name: 2 for name in sizes if name != "hub"} | ({} if settled == 1 else {"hub": 3})
    limits = {} if settled == 2 else {"min_units": held, "max_units": held}
    answer = solve(cost, scores, (0.9 if settled != 0 else 0.7) * cost.dense_ms, **limits)
    if settled == 0:
        assert answer.widths == held
    assert answer.gap <= 5e-4
