"""masked == slim == reloaded, over networks that are nasty in one way each."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halp_iee.graph import trace
from halp_iee.graph.sandbox import named_tensors, tensors_in
from halp_iee.slim import load, save, slim_
from halp_iee.slim.build import disagreement, outputs
from tests.graph import networks
from tests.graph.networks import NETWORKS, build
from tests.graph.selections import halves, random_keep, single

every_network = pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)


def run(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    return outputs(model, args, kwargs)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@every_network
def test_masked_slim_and_reloaded_agree_for_any_units(kind: type[nn.Module], tmp_path: Path) -> None:
    model, inputs = build(kind)
    graph = trace(model, inputs)
    for keep in [halves(graph), single(graph), *(random_keep(graph, seed) for seed in range(3))]:
        small = graph.slim(keep)
        with graph.masked(keep):
            wanted = run(model, inputs)
        assert disagreement(wanted, run(small, inputs)) <= 1
        reloaded = load(save(small, tmp_path / "small.safetensors"), model)
        assert disagreement(run(small, inputs), run(reloaded, inputs)) == 0


@every_network
def test_the_original_is_untouched(kind: type[nn.Module]) -> None:
    model, inputs = build(kind)
    model.train()
    before, random_state = state(model), torch.random.get_rng_state()
    graph = trace(model, inputs)
    graph.slim(halves(graph))
    with graph.masked(halves(graph)):
        pass
    assert same(before, state(model))
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())


@every_network
def test_a_slim_network_trains_and_can_be_copied(kind: type[nn.Module]) -> None:
    model, inputs = build(kind)
    graph = trace(model, inputs)
    small = copy.deepcopy(graph.slim(random_keep(graph, 7))).train()
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    loss = sum(out.float().square().mean() for out in tensors_in(small(*args, **kwargs)))
    loss.backward()
    torch.optim.SGD(small.parameters(), 0.01).step()
    assert all(p.requires_grad for p in small.parameters())
    assert any(p.grad is not None for p in small.parameters())


@every_network
def test_a_slim_network_can_be_slimmed_again(kind: type[nn.Module]) -> None:
    model, inputs = build(kind)
    graph = trace(model, inputs)
    small = graph.slim(halves(graph))
    again = trace(small, inputs)
    smaller = again.slim(halves(again))
    assert sum(p.numel() for p in smaller.parameters()) <= sum(p.numel() for p in small.parameters())


@every_network
def test_widths_foretell_the_shapes_of_the_slim_network(kind: type[nn.Module]) -> None:
    model, inputs = build(kind)
    graph = trace(model, inputs)
    keep = random_keep(graph, 3)
    widths, positions = graph.widths(keep), graph.positions(keep)
    small = graph.slim(keep)
    for name, tensor in named_tensors(small).items():
        for axis, kept in enumerate(positions.get(name, ())):
            assert tensor.shape[axis] == (graph.full_shapes[name][axis] if kept is None else len(kept))
    full = [op for op in graph.ops if op.kind in ("conv", "linear")]
    slim = [op for op in trace(small, inputs).ops if op.kind in ("conv", "linear")]
    assert [op.module for op in full] == [op.module for op in slim]
    for one, two in zip(full, slim, strict=True):
        axis = 1 if one.kind == "conv" else -1
        assert one.c_in(widths) == two.in_shape[axis]
        assert one.c_out(widths) == two.out_shape[axis]


def test_a_network_can_be_resized_in_place_both_ways() -> None:
    model, inputs = build(networks.Grouped)
    graph = trace(model, inputs)
    body, full = copy.deepcopy(model), state(model)
    slim_(body, graph, halves(graph))
    assert disagreement(run(graph.slim(halves(graph)), inputs), run(body, inputs)) == 0
    slim_(body, graph, random_keep(graph, 1), full)
    assert disagreement(run(graph.slim(random_keep(graph, 1)), inputs), run(body, inputs)) == 0
    slim_(body, graph, {}, full)
    assert same(full, state(body))
    assert disagreement(run(model, inputs), run(body, inputs)) == 0


def test_slimming_takes_the_values_of_another_model_of_the_same_structure() -> None:
    model, inputs = build(networks.Residual)
    other, _ = build(networks.Residual, seed=1)
    graph = trace(model, inputs)
    keep = random_keep(graph, 0)
    small = graph.slim(keep, other)
    with graph.masked(keep, other):
        assert disagreement(run(other, inputs), run(small, inputs)) <= 1


def test_masking_restores_bit_for_bit_after_an_error() -> None:
    model, inputs = build(networks.SharedTwice)
    with torch.no_grad():
        model.stem[0].weight[0, 0, 0, 0] = -0.0
    graph = trace(model, inputs)
    before = {name: tensor.clone().view(torch.int32) for name, tensor in model.named_parameters()}
    with pytest.raises(ZeroDivisionError), graph.masked(single(graph)):
        raise ZeroDivisionError
    assert all(torch.equal(p.view(torch.int32), before[name]) for name, p in model.named_parameters())


def test_what_training_changes_under_a_mask_stays_and_what_sleeps_comes_back() -> None:
    model, inputs = build(networks.Residual)
    graph = trace(model, inputs)
    before = state(model)
    keep = {"a.0": [0, 1]}
    with graph.masked(keep):
        model(inputs).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    weight = dict(model.named_parameters())["a.0.weight"]
    assert torch.equal(weight[2:], before["a.0.weight"][2:])
    assert not torch.equal(weight[:2], before["a.0.weight"][:2])


def test_shared_parameters_stay_shared() -> None:
    model, inputs = build(networks.Tokens)
    graph = trace(model, inputs)
    small = graph.slim(halves(graph))
    assert small.out.weight is small.table.weight
    model, inputs = build(networks.SharedTwice)
    small = trace(model, inputs).slim({})
    assert small.alias is small.same[0]


def test_frozen_parameters_and_types_are_kept() -> None:
    model, inputs = build(networks.Residual)
    model = model.double()
    model.a[0].weight.requires_grad_(False)
    graph = trace(model, inputs.double())
    small = graph.slim(halves(graph))
    assert not small.a[0].weight.requires_grad
    assert small.b[0].weight.requires_grad
    assert all(p.dtype == torch.float64 for p in small.parameters())


def test_module_attributes_agree_with_the_tensors() -> None:
    for kind in (networks.Depthwise, networks.Transposed, networks.GroupNormed, networks.LayerNormed):
        model, inputs = build(kind)
        graph = trace(model, inputs)
        for module in graph.slim(halves(graph)).modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
            elif isinstance(module, nn.ConvTranspose2d):
                assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
            elif isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            elif isinstance(module, nn.GroupNorm):
                assert module.weight.shape == (module.num_channels,)
                assert module.num_channels // module.num_groups == 3
            elif isinstance(module, nn.LayerNorm):
                assert tuple(module.weight.shape) == tuple(module.normalized_shape)
