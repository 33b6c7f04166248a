"""RigL, SRigL and IEE do what their papers say: the rules recomputed by hand, on small layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halp_iee.methods.sparse import IEEWeights, RigL, SRigL, Static
from halp_iee.methods.sparse.srigl import update_layer
from tests.methods_sparse.worlds import STEPS, Net, backward, linear, optimizer_of, start, train_step


def test_rigl_drops_the_smallest_and_grows_the_steepest() -> None:
    model, optimizer = linear()
    method = RigL(model, optimizer, steps=100, sparsity=0.7, distribution="uniform", every=10, alpha=0.5)
    for step in range(10):
        backward(model, step)
        optimizer.step()
        method.step()
    backward(model, 10)
    weight, mask = model[0].weight.detach().clone(), method.masks["0"].clone()
    grad = model[0].weight.grad.clone()
    assert grad[~mask].any(), "the gradient of the update is dense"
    live = int(mask.sum())
    assert live == 18
    K = int(live * 0.5 / 2 * (1 + math.cos(math.pi * 10 / 75)))
    order = sorted((abs(float(weight[r, c])), r * 10 + c) for r, c in torch.nonzero(mask).tolist())
    kept = mask.flatten().clone()
    kept[[i for _, i in order[:K]]] = False
    steepest = sorted((-abs(float(grad.flatten()[i])), i) for i in range(60) if not kept[i])[:K]
    expected = kept.clone()
    expected[[i for _, i in steepest]] = True
    optimizer.step()
    assert torch.equal(method.masks["0"].flatten(), expected)
    assert torch.equal(model[0].weight.flatten()[kept], weight.flatten()[kept]), "the update replaces the step"


@pytest.mark.parametrize("batches", [1, 2, 3, 5])
@pytest.mark.parametrize("clipped", [False, True])
def test_rigl_grows_by_the_gradient_of_as_many_batches_as_asked_and_trains_as_with_one(
    batches: int, clipped: bool
) -> None:
    def made(n: int) -> tuple[Any, Any, RigL]:
        model, optimizer = linear()
        return model, optimizer, RigL(
            model, optimizer, steps=100, sparsity=0.7, distribution="uniform", every=5, alpha=0.6, gradient_batches=n
        )  # fmt: skip

    (model, optimizer, method), (plain, plain_optimizer, plain_method) = made(batches), made(1)
    seen: list[Tensor] = []
    for step in range(16):
        free, _ = linear()
        free.load_state_dict(model.state_dict())
        backward(free, step)
        seen.append(free[0].weight.grad)
        for one in (model, plain):
            backward(one, step)
        if clipped and step % 5:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
        before = method.masks["0"].clone()
        optimizer.step()
        plain_optimizer.step()
        if step and step % 5 == 0:
            total = sum(seen[-batches:]).abs()  # type: ignore[union-attr]
            grown = method.masks["0"] & ~before
            stayed_dead = ~method.masks["0"] & ~before
            assert grown.any()
            assert total[grown].min() >= total[stayed_dead].max()
        method.step()
        plain_method.step()
        if step < 5:
            assert torch.equal(model[0].weight, plain[0].weight)


def test_a_weight_that_dies_and_comes_back_at_once_keeps_its_value_and_its_past() -> None:
    model, optimizer = linear()
    method = RigL(model, optimizer, steps=100, sparsity=0.7, distribution="uniform", every=3, alpha=0.9)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        method.step()
    backward(model)
    weight = model[0].weight
    weak = torch.where(method.masks["0"], weight.detach().abs(), torch.inf).argmin()
    weight.grad.flatten()[weak] = 1e6
    value, past = float(weight.flatten()[weak]), float(optimizer.state[weight]["momentum_buffer"].flatten()[weak])
    optimizer.step()
    assert method.masks["0"].flatten()[weak]
    assert float(weight.flatten()[weak]) == value
    assert float(optimizer.state[weight]["momentum_buffer"].flatten()[weak]) == past != 0


@settings(max_examples=120, deadline=None)
@given(st.integers(2, 8), st.integers(2, 12), st.floats(0.0, 1.0), st.integers(0, 9999), st.data())
def test_srigl_updates_a_layer_by_the_papers_seven_steps(
    rows: int, columns: int, gamma: float, seed: int, data: Any
) -> None:
    generator = torch.Generator().manual_seed(seed)
    budget = data.draw(st.integers(rows, rows * columns - 1))
    k0 = budget // rows
    active = torch.rand(rows, generator=generator) < 0.8
    active[0] = True
    k = min(columns, budget // int(active.sum()))
    mask = torch.rand(rows, columns, generator=generator).argsort(1).argsort(1) < k
    mask &= active[:, None]
    w, g = torch.rand(rows, columns, generator=generator), torch.rand(rows, columns, generator=generator)
    K = data.draw(st.integers(0, int(mask.sum())))
    pruned, new = update_layer(mask, w, g, exchanged=K, budget=budget, k0=k0, gamma=gamma)
    # by hand
    live = sorted(torch.nonzero(mask).tolist(), key=lambda rc: float(w[tuple(rc)]))
    dead = sorted(torch.nonzero(~mask).tolist(), key=lambda rc: -float(g[tuple(rc)]))
    salient = [0] * rows
    for r, _ in live[K:] + dead[:K]:
        salient[r] += 1
    threshold = max(1, int(gamma * k0))
    stay = [s >= threshold or gamma == 0 for s in salient]
    fewest = math.ceil(budget / columns)
    if sum(stay) < fewest:
        best = sorted(range(rows), key=lambda r: -salient[r])[:fewest]
        stay = [s or r in best for r, s in enumerate(stay)]
    fan_in = min(columns, budget // sum(stay))
    for r in range(rows):
        kept = {c for row, c in live[K:] if row == r} if stay[r] else set()
        if len(kept) > fan_in:
            kept = set(sorted(kept, key=lambda c: -float(w[r, c]))[:fan_in])
        assert set(torch.nonzero(pruned[r]).flatten().tolist()) == kept
        if stay[r]:
            others = sorted(set(range(columns)) - kept, key=lambda c: -float(g[r, c]))
            kept |= set(others[: fan_in - len(kept)])
        assert set(torch.nonzero(new[r]).flatten().tolist()) == kept


def test_srigl_ablates_and_an_ablated_neuron_can_come_back() -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:3, :4] = True  # neuron 3 is ablated
    w, g = torch.rand(4, 8), torch.rand(4, 8) * 0.1
    w[0], g[3] = 1e-3, 5.0  # neuron 0 has only weak weights, neuron 3 would learn fast
    _, new = update_layer(mask, w, g, exchanged=4, budget=12, k0=3, gamma=1.0)
    assert new.sum(1).tolist() == [0, 4, 4, 4]


@pytest.mark.parametrize("remaining", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("taken", range(12))
def test_iee_ends_whole_however_few_steps_a_training_turns_out_to_have(taken: int, remaining: int) -> None:
    model, optimizer, method = start("iee erk", "sgd")
    assert isinstance(method, IEEWeights)
    for step in range(taken):
        train_step(model, optimizer, method, step)
    method.expect(remaining)
    for step in range(taken, taken + remaining):
        train_step(model, optimizer, method, step)
    assert method.done
    assert {name: int(mask.sum()) for name, mask in method.masks.items()} == method.budget
    assert all(not method.weight(name)[~mask].any() for name, mask in method.masks.items())


def test_iee_freezes_what_is_active_bit_for_bit_while_it_explores() -> None:
    model, optimizer, method = start("iee erk", "adam")
    assert isinstance(method, IEEWeights)
    seen = 0
    frozen: dict[str, Tensor] = {}
    for step in range(STEPS):
        before = method.stage
        train_step(model, optimizer, method, step)
        if method.stage == "explore" and before != "explore":
            frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
            statistics = {n: b.clone() for n, b in model.named_buffers()}
        elif before == "explore":
            seen += 1
            masks = {f"{n}.weight": mask for n, mask in method.masks.items()}
            for name, value in model.named_parameters():
                old = frozen[name]
                if name not in masks:
                    assert torch.equal(value, old), name
                elif method.stage == "explore":
                    assert torch.equal(value[masks[name]], old[masks[name]])
                    assert not torch.equal(value[~masks[name]], old[~masks[name]])
            if method.stage != "explore":
                assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers())
    assert seen > 4


@pytest.mark.parametrize("unused", ["zero", "initial"])
def test_iee_wakes_weights_with_their_most_recent_values(unused: str) -> None:
    torch.manual_seed(0)
    initial = {n: p.detach().clone() for n, p in Net().named_parameters()}
    model, optimizer, method = start("iee erk", unused=unused)
    assert isinstance(method, IEEWeights)
    before: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    while method.stage != "explore":
        before = {n: method.weight(n).detach().clone() for n in method.masks}
        if method.stage == "importance":
            first = {n: mask.clone() for n, mask in method.masks.items()}
        train_step(model, optimizer, method, method.taken)
    for name, mask in method.masks.items():
        never, value = ~first[name], method.weight(name)
        wanted = initial[f"{name}.weight"] if unused == "initial" else torch.zeros_like(value)
        assert torch.equal(value[never], wanted[never]), "never alive"
        dropped = first[name] & ~mask
        assert value[dropped].all()
        assert not before[name][dropped].any()


def test_what_iee_grows_does_not_depend_on_values_that_were_never_used() -> None:
    grown = []
    for factor in (1.0, 100.0):
        torch.manual_seed(0)
        model = Net()
        Static(model, optimizer_of("sgd", model), steps=1, sparsity=0.8).close()
        live = {n: p.detach() != 0 for n, p in model.named_parameters()}
        torch.manual_seed(0)
        model = Net()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.where(live[name], parameter, factor * parameter))
        optimizer = optimizer_of("sgd", model)
        method = IEEWeights(model, optimizer, steps=STEPS, sparsity=0.8, H=2, J=1, Q=2)
        assert all(torch.equal(mask, live[f"{n}.weight"]) for n, mask in method.masks.items()), "the same structure"
        for step in range(STEPS):
            train_step(model, optimizer, method, step)
        grown.append(method.masks)
    assert all(torch.equal(mask, grown[1][n]) for n, mask in grown[0].items())


@pytest.mark.parametrize(("steps", "stages"), [(60_000, (150, 150, 150)), (2000, (50, 50, 5)), (20, (1, 1, 1))])
def test_iee_explores_for_less_of_a_short_training(steps: int, stages: tuple[int, int, int]) -> None:
    model, optimizer = linear()
    method = IEEWeights(model, optimizer, steps=steps, sparsity=0.7)
    assert stages == (method.H, method.J, method.Q)
    assert method.cycles == steps * 3 // 4 // sum(stages)


def test_evaluation_while_exploring_shows_the_active_structure() -> None:
    model, optimizer, method = start("iee erk")
    while not (method.stage == "explore" and method._left == 1):  # type: ignore[attr-defined]
        train_step(model, optimizer, method, method.taken)
    values = {n: v.clone() for n, v in model.state_dict().items()}
    with method.evaluation(model):
        assert all(not method.weight(n)[~mask].any() for n, mask in method.masks.items())
        assert not torch.equal(model.bn.running_mean, values["bn.running_mean"])
    assert all(torch.equal(v, values[n]) for n, v in model.state_dict().items())


def test_srigl_is_named_by_its_neurons() -> None:
    model, optimizer, method = start("srigl ablating")
    assert isinstance(method, SRigL)
    for step in range(STEPS):
        train_step(model, optimizer, method, step)
    active = method.active_neurons()
    assert any(not neurons.all() for neurons in active.values()), "gamma = 0.95 ablates"
