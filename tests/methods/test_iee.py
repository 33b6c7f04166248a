"""IEE: what each stage may change, what the budget may never do, and going on after a stop."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halp_iee import IEE, IEEConfig
from halp_iee.errors import TargetError, UsageError
from halp_iee.graph.passages import passages
from halp_iee.methods.config import HALPConfig
from halp_iee.methods.elastic import ElasticNetwork, _index
from halp_iee.methods.halp import HALP
from halp_iee.solve import solve

from .conftest import World

CONFIG = IEEConfig(H=3, J=2, Q=3, T=4, start="random")


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train_step(world: World, model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> None:
    model.train()
    rows = slice(16 * (i % 4), 16 * (i % 4) + 16)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(world.images[rows]), world.labels[rows]).backward()
    optimizer.step()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    slots = {
        f"{name}/{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    }
    return {name: value.detach().clone() for name, value in {**tensors, **slots}.items()}


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@pytest.mark.parametrize("start", ["random", "dense"])
def test_the_active_structure_is_the_same_to_the_bit_before_and_after_exploring(
    world: World, optimizer_name: str, start: Any
) -> None:
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer(optimizer_name, model)
    config = IEEConfig(H=3, J=2, Q=3, T=4, start=start)
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=config)
    before: dict[str, Tensor] = {}
    active, compared = {}, 0
    for i in range(config.steps):
        train_step(world, model, optimizer, i)
        if iee.stage == "accuracy" and iee._left == 1:
            before, active = snapshot(model, optimizer), iee.keep
        iee.step()
        if iee.stage == "explore":
            positions = iee.elastic.positions(active)
            after = snapshot(model, optimizer)
            for name, old in before.items():
                parameter = name.split("/")[0]
                new = after[name][_index(positions[parameter], after[parameter])]
                assert torch.equal(new, old), (i, name)
                compared += 1
    assert compared


def test_after_growing_the_survivors_are_still_what_they_were_before_exploring(world: World) -> None:
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=CONFIG)
    for i in range(CONFIG.steps):
        train_step(world, model, optimizer, i)
        if iee.stage == "accuracy" and iee._left == 1:
            before, standing = snapshot(model, optimizer), iee.keep
        growing = iee.stage == "explore" and iee._left == 1
        iee.step()
        if growing:
            full = iee.elastic.positions(standing)
            iee.elastic.save_awake()
            for name, value in iee.elastic.store.items():
                assert torch.equal(value[_index(full[name], value)], before[name]), name


@pytest.mark.parametrize("target", [0.25, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("solver", ["joint", "halp"])
@pytest.mark.parametrize("start", ["random", "dense"])
def test_no_structure_ever_costs_more_than_its_budget(world: World, target: float, solver: str, start: Any) -> None:
    events: list[dict[str, Any]] = []
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    config = IEEConfig(H=2, J=1, Q=2, T=5, solver=solver, start=start)
    iee = IEE(model, world.graph, world.cost, target=target, optimizer=optimizer, config=config, on_event=events.append)
    psi_ms = target * world.cost.dense_ms
    for i in range(config.steps):
        train_step(world, model, optimizer, i)
        iee.step()
        active = {name: len(units) for name, units in iee.keep.items()}
        assert world.cost.predict(active) <= (iee.budget_ms(iee.cycle - 1) if iee.cycle else world.cost.dense_ms) + 1e-9
        if iee.stage != "explore":
            assert {n: len(u) for n, u in iee.keep.items()}.items() <= iee.widths.items()
        if start == "random":
            assert world.cost.predict(active) <= psi_ms + 1e-9
    assert iee.done
    assert world.cost.predict({name: len(units) for name, units in iee.keep.items()}) <= psi_ms + 1e-9
    for event in events:
        assert event["latency_ms"] <= event["budget_ms"] + 1e-9, event["kind"]
    assert [e["kind"] for e in events] == ["start"] * (start == "random") + ["prune", "grow"] * 5


@pytest.mark.parametrize("target", [0.25, 0.4, 0.6, 0.9])
def test_the_random_start_has_units_by_chance_in_widths_that_are_nearly_even(world: World, target: float) -> None:
    """Scores that are random themselves make the solver keep what is cheap: some group is then starved."""
    sizes = {group.name: group.size for group in world.graph.groups if group.prunable}
    starts = []
    for seed in range(4):
        model = copy.deepcopy(world.model)
        iee = IEE(
            model, world.graph, world.cost, target=target, optimizer=make_optimizer("sgd", model),
            config=replace(CONFIG, seed=seed),
        )  # fmt: skip
        starts.append(iee.keep)
        starved = solve(world.cost, iee._random_scores(0), target * world.cost.dense_ms)

        def least(widths: dict[str, int]) -> float:
            return min(widths[name] / size for name, size in sizes.items())

        even = {name: len(units) for name, units in iee.keep.items()}
        assert least(even) >= least(starved.widths)
        assert sum(n / even[g] for g, n in sizes.items()) <= sum(n / starved.widths[g] for g, n in sizes.items()) + 1e-9
    assert len({tuple(len(units) for units in start.values()) for start in starts}) == 1
    if target < 0.9:
        assert len({tuple(map(tuple, start.values())) for start in starts}) > 1


@pytest.mark.parametrize("start", ["random", "dense"])
@pytest.mark.parametrize("floor", [0.0, 0.75, 1.0])
def test_no_group_falls_under_its_floor(world: World, start: Any, floor: float) -> None:
    """Not even where importance calls for it: here the units of a group that everything must pass are worth nothing."""
    events: list[dict[str, Any]] = []
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    config = IEEConfig(H=2, J=1, Q=2, T=5, start=start, floor=floor)
    target = 0.5 * world.cost.dense_ms
    iee = IEE(model, world.graph, world.cost, target_ms=target, optimizer=optimizer, config=config,
              on_event=events.append)  # fmt: skip
    even = iee._of(iee._solve(iee._even_scores(), target))
    narrow = sorted(passages(world.graph))
    assert narrow
    assert set(narrow) < set(even), "the tiny network has branches as well"
    poor = narrow[0]
    honest = iee._collect

    def starving() -> dict[str, np.ndarray]:
        return {name: values * (1e-9 if name == poor else 1.0) for name, values in honest().items()}

    iee._collect = starving  # type: ignore[method-assign]
    for i in range(config.steps):
        train_step(world, model, optimizer, i)
        iee.step()
    for event in events:
        for name in narrow:
            assert event["widths"][name] >= max(1, floor * len(even[name])), (event["kind"], name)
    if floor == 0.0:
        assert min(event["widths"][poor] for event in events) < 0.75 * len(even[poor])


def test_pruning_only_takes_away_and_growing_only_adds(world: World) -> None:
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=CONFIG)
    for i in range(CONFIG.steps):
        stage, before = iee.stage, iee.keep
        train_step(world, model, optimizer, i)
        iee.step()
        for name, units in iee.keep.items():
            if stage == "importance":
                assert np.isin(units, before[name]).all()
            else:
                assert np.isin(before[name], units).all()


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [0, 2, 3, 5, 7, 8, 12, 17, 31])
def test_going_on_from_a_checkpoint_gives_the_same_bits_as_never_stopping(
    world: World, optimizer_name: str, stop: int
) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, IEE]:
        model = copy.deepcopy(world.model)
        optimizer = make_optimizer(optimizer_name, model)
        return model, optimizer, IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=CONFIG)

    straight, optimizer, iee = fresh()
    for i in range(CONFIG.steps + 3):
        train_step(world, straight, optimizer, i)
        iee.step()
        if i == stop:
            state = copy.deepcopy(iee.state_dict())
            values = {n: v.clone() for n, v in straight.state_dict().items()}
            slots = {
                name: {k: copy.deepcopy(v) for k, v in optimizer.state[p].items()}
                for name, p in straight.named_parameters()
            }
    expected = straight.state_dict()

    resumed, optimizer, iee = fresh()
    iee.load_state_dict(state)
    resumed.load_state_dict(values)
    for name, parameter in resumed.named_parameters():
        optimizer.state[parameter] = slots[name]
    for i in range(stop + 1, CONFIG.steps + 3):
        train_step(world, resumed, optimizer, i)
        iee.step()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_while_exploring_the_active_structure_is_what_is_evaluated(world: World) -> None:
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=CONFIG)
    seen = 0
    for i in range(CONFIG.steps):
        train_step(world, model, optimizer, i)
        iee.step()
        if iee.stage == "explore":
            before = snapshot(model, optimizer)
            with iee.evaluation():
                shown = model.eval()(world.images)
            assert all(torch.equal(value, before[name]) for name, value in snapshot(model, optimizer).items())
            torch.testing.assert_close(shown, replace(world.graph, model=model).slim(iee.keep).eval()(world.images))
            seen += 1
    assert seen


def test_falling_asleep_and_waking_up_loses_nothing(world: World) -> None:
    rng = np.random.default_rng(0)
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    train_step(world, model, optimizer, 0)
    elastic = ElasticNetwork(model, world.graph, optimizer)
    elastic.adopt_slots()
    before = snapshot(model, optimizer)
    for _ in range(10):
        keep = {
            g.name: np.sort(rng.choice(g.size, rng.integers(1, g.size + 1), replace=False))
            for g in world.graph.groups
            if g.prunable
        }
        elastic.save_awake()
        elastic.resize(keep)
        assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in world.model.parameters())
    elastic.save_awake()
    elastic.resize({})
    after = snapshot(model, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_finished_network_is_the_slim_one_and_is_proved_equal(world: World) -> None:
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=CONFIG)
    for i in range(CONFIG.steps):
        train_step(world, model, optimizer, i)
        iee.step()
    small = iee.slim().eval()
    torch.testing.assert_close(small(world.images), model.eval()(world.images))
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in world.model.parameters())


def test_with_a_clock_the_last_structure_is_corrected_until_it_is_met_as_measured(world: World) -> None:
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)

    def clock(keep: dict[str, np.ndarray]) -> float:  # a machine that is slower than the table says
        return 1.15 * world.cost.predict({name: len(units) for name, units in keep.items()}) + 0.01

    iee = IEE(model, world.graph, world.cost, target=0.6, optimizer=optimizer, config=CONFIG, measure=clock)
    for i in range(CONFIG.steps):
        train_step(world, model, optimizer, i)
        iee.step()
    assert iee.done
    assert clock(iee.keep) <= iee.target_ms


@pytest.mark.parametrize(
    ("change", "stages"),
    [({"J": 0}, 4), ({"Q": 0}, 4), ({"grow": "random"}, 4), ({"reactivate": "zero"}, 4), ({"freeze": False}, 4)],
)
def test_every_ablation_of_the_paper_can_be_run(world: World, change: dict[str, Any], stages: int) -> None:
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    config = IEEConfig(**{"H": 2, "J": 2, "Q": 2, "T": stages, **change})
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=config)
    for i in range(config.steps):
        assert not iee.done
        train_step(world, model, optimizer, i)
        iee.step()
    assert iee.done


@pytest.mark.parametrize("target", [0.0, -1.0, 1.5, float("nan")])
def test_a_target_that_is_no_fraction_is_refused(world: World, target: float) -> None:
    with pytest.raises(UsageError, match="fraction"):
        IEE(world.model, world.graph, world.cost, target, optimizer=make_optimizer("sgd", world.model))


def test_a_target_under_the_floor_is_refused_before_the_first_step_with_the_floor_named(world: World) -> None:
    model = copy.deepcopy(world.model)
    with pytest.raises(TargetError, match="ms"):
        IEE(model, world.graph, world.cost, 0.001, optimizer=make_optimizer("sgd", model))


def test_an_optimizer_of_another_model_is_refused(world: World) -> None:
    other = copy.deepcopy(world.model)
    with pytest.raises(UsageError, match="optimizer"):
        IEE(world.model, world.graph, world.cost, 0.5, optimizer=make_optimizer("sgd", other))


@pytest.mark.parametrize("taken", range(0, 24, 2))
@pytest.mark.parametrize("remaining", [1, 2, 4, 9, 40])
@pytest.mark.parametrize("method", ["random", "dense", "halp"])
def test_a_training_that_becomes_shorter_still_ends_within_the_target(
    world: World, taken: int, remaining: int, method: str
) -> None:
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)

    def made() -> Any:
        if method == "halp":
            config = HALPConfig(steps=6, interval=4)
            return HALP(model, world.graph, world.cost, target=0.4, optimizer=optimizer, config=config)
        stages = IEEConfig(H=3, J=2, Q=3, T=4, start=method)  # type: ignore[arg-type]
        return IEE(model, world.graph, world.cost, target=0.4, optimizer=optimizer, config=stages)

    search = made()
    for i in range(taken):
        train_step(world, model, optimizer, i)
        search.step()
    search.expect(remaining)
    for i in range(remaining):
        train_step(world, model, optimizer, i)
        search.step()
    assert search.done
    assert world.cost.predict(search.widths) <= 0.4 * world.cost.dense_ms + 1e-9


@pytest.mark.parametrize("method", ["iee", "halp"])
def test_what_stands_is_decided_more_exactly_than_what_is_decided_again(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked: list[tuple[int, float]] = []
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    psi = 0.5 * world.cost.dense_ms
    given: dict[str, Any] = {"target": 0.5, "optimizer": optimizer, "measure": lambda keep: 0.9 * psi}

    def noted(*args: Any, tolerance: float, **more: Any) -> Any:
        asked.append((search.cycle, tolerance))
        return solve(*args, tolerance=tolerance, **more)

    if method == "iee":
        search: Any = IEE(model, world.graph, world.cost, config=CONFIG, **given)
    else:
        search = HALP(model, world.graph, world.cost, config=HALPConfig(steps=4, interval=3), **given)
    monkeypatch.setattr("halp_iee.methods.search.solve", noted)
    i = 0
    while not search.done:
        train_step(world, model, optimizer, i)
        search.step()
        i += 1
    assert {gap for cycle, gap in asked if cycle < 3} == {2e-3}
    assert {gap for cycle, gap in asked if cycle >= 3} == {5e-4}
    assert max(cycle for cycle, _ in asked) == 4  # settling, after the last cycle
