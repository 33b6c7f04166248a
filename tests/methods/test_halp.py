"""HALP: one way down, never over its schedule, going on after a stop, met as measured."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from halp_iee.errors import TargetError, UsageError
from halp_iee.importance import CRITERIA
from halp_iee.methods.config import HALPConfig
from halp_iee.methods.halp import HALP

from .conftest import World
from .test_iee import make_optimizer, train_step


def begun(world: World, config: HALPConfig, optimizer_name: str = "sgd", target: float = 0.4, **options: Any):
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer(optimizer_name, model)
    return model, optimizer, HALP(
        model, world.graph, world.cost, target, optimizer=optimizer, config=config, **options
    )  # fmt: skip


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("solver", ["joint", "halp"])
def test_the_way_down_is_the_exponential_schedule_and_never_over_it(world: World, criterion: str, solver: str) -> None:
    events: list[dict[str, Any]] = []
    config = HALPConfig(steps=5, interval=3, criterion=criterion, solver=solver)
    model, optimizer, halp = begun(world, config, on_event=events.append)
    dense_ms, psi_ms = world.cost.dense_ms, 0.4 * world.cost.dense_ms
    before = halp.keep
    for i in range(config.period):
        assert not halp.done
        train_step(world, model, optimizer, i)
        resized = halp.step()
        assert resized == ((i + 1) % 3 == 0)
        for name, units in halp.keep.items():
            assert np.isin(units, before[name]).all()
        before = halp.keep
    assert halp.done
    assert [e["kind"] for e in events] == ["prune"] * 5
    for t, event in enumerate(events, 1):
        schedule = dense_ms ** (1 - t / 5) * psi_ms ** (t / 5)
        assert event["budget_ms"] == pytest.approx(schedule)
        assert event["latency_ms"] <= schedule + 1e-9
        assert world.cost.predict(event["widths"]) == pytest.approx(event["latency_ms"])
    assert world.cost.predict(halp.widths) <= psi_ms
    small = halp.slim().eval()
    torch.testing.assert_close(small(world.images), model.eval()(world.images))


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [0, 2, 3, 7, 11, 14, 16])
def test_going_on_from_a_checkpoint_gives_the_same_bits_as_never_stopping(
    world: World, optimizer_name: str, stop: int
) -> None:
    config = HALPConfig(steps=5, interval=3)
    straight, optimizer, halp = begun(world, config, optimizer_name)
    for i in range(config.period + 3):
        train_step(world, straight, optimizer, i)
        halp.step()
        if i == stop:
            state = copy.deepcopy(halp.state_dict())
            values = {n: v.clone() for n, v in straight.state_dict().items()}
            slots = {n: copy.deepcopy(dict(optimizer.state[p])) for n, p in straight.named_parameters()}
    resumed, optimizer, again = begun(world, config, optimizer_name)
    again.load_state_dict(state)
    resumed.load_state_dict(values)
    for name, parameter in resumed.named_parameters():
        optimizer.state[parameter] = slots[name]
    for i in range(stop + 1, config.period + 3):
        train_step(world, resumed, optimizer, i)
        again.step()
    assert {n: u.tolist() for n, u in again.keep.items()} == {n: u.tolist() for n, u in halp.keep.items()}
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(("scale", "offset"), [(1.2, 0.01), (0.8, 0.0), (1.0, 0.0)])
def test_the_last_structure_is_corrected_until_it_is_met_as_measured(world: World, scale: float, offset: float) -> None:
    def clock(keep: dict[str, np.ndarray]) -> float:
        return scale * world.cost.predict({name: len(units) for name, units in keep.items()}) + offset

    events: list[dict[str, Any]] = []
    config = HALPConfig(steps=3, interval=2)
    model, optimizer, halp = begun(world, config, target=0.6, measure=clock, on_event=events.append)
    for i in range(config.period):
        train_step(world, model, optimizer, i)
        halp.step()
    assert clock(halp.keep) <= halp.target_ms
    assert events[-1]["kind"] == "settle"
    assert events[-1]["measured_ms"] == clock(halp.keep)


def test_what_is_kept_is_more_important_than_what_went_where_units_cost_alike(world: World) -> None:
    """With one step and one group decided at a time, the survivors of a group are its best."""
    config = HALPConfig(steps=1, interval=1, criterion="magnitude_l1")
    model, optimizer, halp = begun(world, config)
    from halp_iee.importance import score

    train_step(world, model, optimizer, 0)
    # Judged before the optimizer moved the weights, so up to that one step.
    scores = score("magnitude_l1", copy.deepcopy(model), world.graph)
    halp.step()
    for name, kept in halp.keep.items():
        gone = np.setdiff1d(np.arange(len(scores[name])), kept)
        if len(gone):
            assert scores[name][kept].min() > scores[name][gone].max() * 0.95


def test_a_target_under_the_floor_is_refused_before_the_first_step(world: World) -> None:
    with pytest.raises(TargetError, match="ms"):
        begun(world, HALPConfig(), target=0.001)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"interval": 0}, "interval"),
        ({"criterion": "charm"}, "charm"),
        ({"min_fraction": 2}, "share"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        HALPConfig(**settings)


def test_the_model_is_physically_small_at_every_moment(world: World) -> None:
    config = HALPConfig(steps=4, interval=2)
    model, optimizer, halp = begun(world, config)
    sizes = [sum(p.numel() for p in model.parameters())]
    for i in range(config.period):
        train_step(world, model, optimizer, i)
        if halp.step():
            sizes.append(sum(p.numel() for p in model.parameters()))
            held = {id(p) for g in optimizer.param_groups for p in g["params"]}
            assert held == {id(p) for p in model.parameters()}
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.7 * sizes[0]
    assert isinstance(model, nn.Module)
