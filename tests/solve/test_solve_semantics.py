"""What prune, grow, limits and undecided groups mean, over random networks; and bad input."""

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from halp_iee.errors import HalpError, TargetError, UsageError
from halp_iee.graph.records import ChannelGroup, Width
from halp_iee.solve import build, floor_ms, solve
from tests.solve.fakes import TableCost, TableLayer, every_choice, random_cost, random_importance

SOLVERS = ["joint", "halp"]


def question(seed):
    rng = np.random.default_rng(seed)
    cost = random_cost(rng)
    return rng, cost, random_importance(rng, cost.sizes)


def some_units(rng, sizes, at_least=1):
    return {
        name: np.sort(rng.permutation(size)[: int(rng.integers(at_least, size + 1))]) for name, size in sizes.items()
    }


@pytest.mark.parametrize("solver", SOLVERS)
def test_pruning_keeps_only_active_units_and_the_best_of_them(solver):
    for seed in range(80):
        rng, cost, importance = question(seed)
        active = some_units(rng, cost.sizes)
        low = floor_ms(cost, importance, active=active)
        high = cost.predict({name: len(units) for name, units in active.items()})
        budget_ms = low + rng.random() * max(0.0, high - low)
        answer = solve(cost, importance, budget_ms, solver, active=active)
        truth = max(v for _, v, t in every_choice(cost, importance, active) if t <= budget_ms)
        assert answer.bound >= truth - 1e-9
        assert answer.latency_ms <= budget_ms
        for name, units in answer.keep.items():
            assert set(units) <= set(active[name])
            left_out = np.setdiff1d(active[name], units)
            if len(left_out):
                assert importance[name][units].min() >= importance[name][left_out].max()
        if solver == "joint":
            assert answer.value >= truth * (1 - 2e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_growing_keeps_every_standing_unit_and_adds_the_best_of_the_rest(solver):
    for seed in range(80):
        rng, cost, importance = question(seed)
        standing = some_units(rng, cost.sizes)
        low = floor_ms(cost, importance, standing=standing)
        budget_ms = low + rng.random() * max(0.0, cost.dense_ms - low)
        answer = solve(cost, importance, budget_ms, solver, standing=standing)
        truth = max(v for _, v, t in every_choice(cost, importance, None, standing) if t <= budget_ms)
        assert answer.bound >= truth - 1e-9
        assert answer.latency_ms <= budget_ms
        for name, units in answer.keep.items():
            assert set(standing[name]) <= set(units)
            grown = np.setdiff1d(units, standing[name])
            left_out = np.setdiff1d(np.arange(cost.sizes[name]), units)
            if len(left_out) and len(grown):
                assert importance[name][grown].min() >= importance[name][left_out].max()


def test_pruning_then_growing_conserves_the_budget():
    for seed in range(40):
        rng, cost, importance = question(seed)
        active = some_units(rng, cost.sizes)
        psi = cost.predict({name: len(units) for name, units in active.items()})
        low = floor_ms(cost, importance, active=active)
        pruned = solve(cost, importance, low + 0.5 * max(0.0, psi - low), active=active)
        explored = {name: rng.gamma(0.5, 1.0, size) for name, size in cost.sizes.items()}
        grown = solve(cost, explored, max(psi, pruned.latency_ms), standing=pruned.keep)
        assert grown.latency_ms <= max(psi, pruned.latency_ms)
        for name, units in pruned.keep.items():
            assert set(units) <= set(grown.keep[name])


def test_groups_without_scores_stay_as_they_are():
    for seed in range(30):
        rng, cost, importance = question(seed)
        still = sorted(importance)[0]
        del importance[still]
        if not importance:
            continue
        active = some_units(rng, cost.sizes)
        budget_ms = 0.9 * cost.dense_ms
        try:
            whole = solve(cost, importance, budget_ms)
            partly = solve(cost, importance, budget_ms, active=active)
        except TargetError:
            continue
        assert whole.widths[still] == cost.sizes[still]
        np.testing.assert_array_equal(partly.keep[still], active[still])


def test_frozen_groups_stay_whole_even_when_they_have_scores():
    cost, importance = pair_of_layers()
    for frozen in ("a", "b"):
        groups = tuple(
            ChannelGroup(name, size, (), prunable=name != frozen, reason="frozen") for name, size in cost.sizes.items()
        )
        known = SimpleNamespace(
            layers=cost.layers,
            fixed_ms=cost.fixed_ms,
            predict=cost.predict,
            graph=SimpleNamespace(groups=groups),
        )
        answer = solve(known, importance, 0.9 * cost.dense_ms)
        other = "b" if frozen == "a" else "a"
        assert answer.widths[frozen] == cost.sizes[frozen]
        assert answer.value == pytest.approx(importance[other][answer.keep[other]].sum())


def test_limits_and_steps_hold():
    for seed in range(60):
        _, cost, importance = question(seed)
        name = max(cost.sizes, key=cost.sizes.get)
        size = cost.sizes[name]
        if size < 4:
            continue
        low = floor_ms(cost, importance, min_units={name: 2}, max_units={name: size - 1}, steps={name: 2})
        answer = solve(
            cost, importance, max(low, 0.7 * cost.dense_ms),
            min_units={name: 2}, max_units={name: size - 1}, steps={name: 2},
        )  # fmt: skip
        assert 2 <= answer.widths[name] <= size - 1
        assert answer.widths[name] % 2 == 0 or answer.widths[name] == size - 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_budget_of_the_dense_latency_or_more_keeps_everything(solver):
    for seed in range(30):
        _, cost, importance = question(seed)
        for budget_ms in (cost.dense_ms, 2.0 * cost.dense_ms):
            answer = solve(cost, importance, budget_ms, solver)
            assert answer.widths == cost.sizes
            assert answer.gap == 0.0


def test_the_published_shot_may_miss_the_budget_and_the_default_never_does():
    missed = 0
    for seed in range(60):
        _, cost, importance = question(seed)
        budget_ms = floor_ms(cost, importance) * 1.2
        shot = solve(cost, importance, budget_ms, "halp", as_published=True)
        missed += shot.latency_ms > budget_ms
        assert solve(cost, importance, budget_ms, "halp").latency_ms <= budget_ms
    assert missed > 0


def test_torch_scores_are_taken_without_the_solver_importing_torch():
    code = "import sys, halp_iee.solve; print(sorted({'torch', 'ortools', 'scipy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    torch = pytest.importorskip("torch")
    _, cost, importance = question(1)
    tensors = {name: torch.tensor(score, requires_grad=True) for name, score in importance.items()}
    budget_ms = 0.95 * cost.dense_ms
    assert solve(cost, tensors, budget_ms).widths == solve(cost, importance, budget_ms).widths


def pair_of_layers():
    sizes = {"a": 4, "b": 3}
    a, b = Width((("a", 4, 1),)), Width((("b", 3, 1),))
    table = np.add.outer(np.arange(5.0), np.arange(5.0))
    layers = (TableLayer("l0", Width((), 3), a, table), TableLayer("l1", a, b, table))
    return TableCost(layers, 0.5, sizes), {"a": np.arange(4.0), "b": np.ones(3)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget_ms": 0.0}, "budget_ms is 0.0"),
        ({"budget_ms": -1.0}, "budget_ms is -1.0"),
        ({"budget_ms": math.nan}, "budget_ms is nan"),
        ({"budget_ms": math.inf}, "budget_ms is inf"),
        ({"budget_ms": "abc"}, "budget_ms is 'abc'"),
        ({"solver": "magic"}, "'magic'"),
        ({"importance": {"a": [1.0, math.nan, 0.0, 0.0]}}, "unit 1 of group 'a' is nan"),
        ({"importance": {"a": [1.0, 2.0, -3.0, 0.0]}}, "unit 2 of group 'a' is -3.0"),
        ({"importance": {"a": [1.0, math.inf, 0.0, 0.0]}}, "unit 1 of group 'a' is inf"),
        ({"importance": {"a": [1.0, 2.0]}}, r"group 'a' has shape \(2,\).*4 units"),
        ({"importance": {"a": "words"}}, "group 'a'"),
        ({"importance": {"zzz": [1.0]}}, "'zzz'"),
        ({"active": {"zzz": [0]}}, "active names the group 'zzz'"),
        ({"active": {"a": [0, 9]}}, r"active\['a'\]"),
        ({"active": {"a": [1, 1]}}, r"active\['a'\]"),
        ({"active": {"a": []}}, r"active\['a'\]"),
        ({"active": {"a": [0.5]}}, r"active\['a'\]"),
        ({"active": {"a": [0, 1]}, "standing": {"a": [2], "b": [0]}}, "unit 2 of group 'a' is standing"),
        ({"min_units": {"a": 3}, "max_units": {"a": 2}}, "at least 3 and at most 2"),
        ({"min_units": {"a": 9}}, "min_units of group 'a' is 9"),
        ({"min_units": 0}, "min_units is 0"),
        ({"max_units": {"a": 1}, "standing": {"a": [0, 1], "b": [0]}}, "2 are standing"),
        ({"steps": {"zzz": 2}}, "steps names the group 'zzz'"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"solver": "halp", "resolution_ms": 0.0, "budget_ms": 9.0}, "resolution_ms is 0.0"),
        ({"solver": "halp", "resolution_ms": 1e-12, "budget_ms": 9.0}, "resolution_ms is 1e-12"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_name_and_the_value(change, said):
    cost, importance = pair_of_layers()
    asked = {"cost": cost, "importance": importance, "budget_ms": 5.0, **change}
    with pytest.raises(UsageError, match=said) as failure:
        solve(**asked)
    assert isinstance(failure.value, HalpError)
    assert "\n" not in str(failure.value)


def test_a_budget_under_the_floor_says_the_floor_and_its_share():
    cost, importance = pair_of_layers()
    with pytest.raises(TargetError, match=r"least that the widths allow is 6\.5 ms, 0\.448 of the dense 14\.5"):
        solve(cost, importance, 5.0)


def test_nothing_to_decide_is_an_answer_or_a_clear_error():
    cost, _ = pair_of_layers()
    answer = solve(cost, {}, 100.0)
    assert answer.widths == cost.sizes
    assert answer.value == answer.bound == 0.0
    with pytest.raises(TargetError):
        solve(cost, {}, 1.0)
    assert build(cost, {}, 1.0).groups == ()
