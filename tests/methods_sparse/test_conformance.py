"""What every sparse method must do, whatever it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from halp_iee.methods.sparse import SparseMethod
from halp_iee.methods.sparse.iee import IEEWeights
from halp_iee.methods.sparse.slots import slots_of
from halp_iee.sparsity.patterns import IndependentPattern
from tests.methods_sparse.worlds import CASES, STEPS, start, train_step

OPTIMIZERS = ("sgd", "adam")
cases = pytest.mark.parametrize("case", list(CASES))


def atoms(method: SparseMethod) -> dict[str, int] | int:
    counts = {name: method.pattern.count(mask) for name, mask in method.masks.items()}
    return sum(counts.values()) if isinstance(method.expected(), int) else counts


def watch_growth(method: SparseMethod, optimizer: torch.optim.Optimizer, seen: list[int]) -> None:
    """From now on check at every update that new weights have no past."""
    install = method._install

    def checked(masks: Any, **more: Any) -> None:
        before = {n: mask.clone() for n, mask in method.masks.items()}
        zero = {n: method.weight(n).detach() == 0 for n in masks}
        install(masks, **more)
        for n, mask in method.masks.items():
            grown = mask & ~before[n]
            seen.append(int(grown.sum()))
            if not isinstance(method, IEEWeights):
                assert zero[n][grown].all()
            for slot, value in slots_of(optimizer, method.weight(n)).items():
                assert not value[grown | ~mask].any(), slot

    method._install = checked  # type: ignore[method-assign]


@cases
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_budget_pattern_zeros_and_slots_hold_from_start_to_end(case: str, optimizer: str) -> None:
    events: list[dict[str, Any]] = []
    model, opt, method = start(case, optimizer, on_event=events.append)
    grown: list[int] = []
    watch_growth(method, opt, grown)
    assert atoms(method) == method.expected()
    for step in range(STEPS):
        train_step(model, opt, method, step)
        assert atoms(method) == method.expected(), f"step {step}"
        assert all(method.pattern.holds(mask) for mask in method.masks.values()), f"step {step}"
        if not (isinstance(method, IEEWeights) and method.stage == "explore"):
            assert all(not method.weight(n)[~mask].any() for n, mask in method.masks.items()), f"step {step}"
    assert method.done
    assert (sum(grown) > 0) == (CASES[case][0] not in ("static", "snip", "gmp"))
    at_the_target(method)
    no_dead_gradients(model, opt, method)
    events_are_right(case, method, events)


def at_the_target(method: SparseMethod) -> None:
    layers = {layer.name: layer for layer in method.layers}
    asked = sum(method.budget[n] * method.pattern.weights_an_atom(la) for n, la in layers.items())
    live = sum(int(mask.sum()) for mask in method.masks.values())
    slack = sum(la.rows for la in layers.values()) if method.pattern.name == "fan-in" else 0
    assert asked - slack <= live <= asked
    if isinstance(method.pattern, IndependentPattern):
        assert live == asked


def no_dead_gradients(model: nn.Module, optimizer: torch.optim.Optimizer, method: SparseMethod) -> None:
    """Clipping by the norm must not see weights that do not live."""
    optimizer.zero_grad()
    model(torch.randn(4, 3, 5, 5)).square().sum().backward()
    for name, mask in method.masks.items():
        grad = method.weight(name).grad
        assert grad is not None
        assert not grad[~mask].any()


def events_are_right(case: str, method: SparseMethod, events: list[dict[str, Any]]) -> None:
    assert events[0]["kind"] == "start"
    assert events[-1]["sparsity"] == method.sparsity
    rates = [event["exploration_rate"] for event in events]
    assert CASES[case][0] == "snip" or rates == sorted(rates)
    assert all(0 <= event["iou"] <= 1 for event in events)
    survived = [event["survival"] for event in events if event.get("survival") is not None]
    assert all(0 <= value <= 1 for value in survived)
    assert bool(survived) == (CASES[case][0] in ("set", "rigl", "mest", "chase", "iee", "srigl"))


@cases
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumes_bit_for_bit_from_any_step(case: str, optimizer: str) -> None:
    model, opt, method = start(case, optimizer)
    saved = {}
    for step in range(STEPS):
        if step in (5, 13):
            saved[step] = copy.deepcopy((model.state_dict(), opt.state_dict(), method.state_dict()))
        train_step(model, opt, method, step)
    for since, (weights, slots, state) in saved.items():
        again, opt2, method2 = start(case, optimizer, seed=5)
        method2.load_state_dict(state)
        again.load_state_dict(weights)
        opt2.load_state_dict(slots)
        for step in range(since, STEPS):
            train_step(again, opt2, method2, step)
        same(model, again, method, method2)


def same(model: nn.Module, again: nn.Module, method: SparseMethod, method2: SparseMethod) -> None:
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    state, state2 = method.state_dict(), method2.state_dict()
    assert state["meta"] == state2["meta"]
    assert state["tensors"].keys() == state2["tensors"].keys()
    assert all(torch.equal(value, state2["tensors"][name]) for name, value in state["tensors"].items())


@cases
def test_the_state_goes_through_a_checkpoint_file(case: str, tmp_path: Any) -> None:
    from halp_iee.train import checkpoint, randomness

    model, opt, method = start(case)
    for step in range(8):
        train_step(model, opt, method, step)
    checkpoint.write(tmp_path / "c", model, opt, method, position={}, fingerprint={}, rng=[randomness.state()])
    again, opt2, method2 = start(case, seed=3)
    checkpoint.restore(checkpoint.read(tmp_path / "c"), again, opt2, method2)
    assert all(torch.equal(mask, method2.masks[n]) for n, mask in method.masks.items())
    for step in range(8, STEPS):
        train_step(model, opt, method, step)
        train_step(again, opt2, method2, step)
    same(model, again, method, method2)


@cases
def test_excluded_layers_stay_dense(case: str) -> None:
    settings = CASES[case][1]
    if isinstance(settings.get("distribution"), dict):
        pytest.skip("its distribution names the layers")
    model, opt, method = start(case, exclude=("fc*", "conv2"))
    for step in range(STEPS):
        train_step(model, opt, method, step)
    assert not {"fc1", "fc2", "conv2"} & set(method.masks)
    if "channel_sparsity" not in settings:  # what reads a removed channel goes with it
        assert model.fc1.weight.all()
        assert model.conv2.weight.all()
