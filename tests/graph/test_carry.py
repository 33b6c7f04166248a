"""Optimizer state and running averages go with a network that is slimmed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from halp_iee.errors import GraphError
from halp_iee.graph import trace
from halp_iee.graph.sandbox import named_tensors, tensors_in
from halp_iee.slim import carry_averages, carry_optimizer
from halp_iee.slim.surgery import narrow
from tests.graph import networks
from tests.graph.networks import build
from tests.graph.selections import halves, random_keep

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    sum(out.float().square().mean() for out in tensors_in(model(inputs))).backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", [networks.Residual, networks.Grouped, networks.LayerNormed, networks.Transposed])
def test_state_is_cut_where_its_parameter_is(kind: type[nn.Module], name: str) -> None:
    model, inputs = build(kind)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(2):
        step(model, optimizer, inputs)
    before = copy.deepcopy(optimizer.state_dict())
    graph = trace(model, inputs)
    keep = random_keep(graph, 0)
    small = graph.slim(keep)
    carried = carry_optimizer(optimizer, graph, small)
    assert type(carried) is type(optimizer)
    full, positions, own = named_tensors(model), graph.positions(keep), named_tensors(small)
    for parameter_name, parameter in model.named_parameters():
        for slot, value in optimizer.state[parameter].items():
            found = carried.state[own[parameter_name]][slot]
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                kept = positions.get(parameter_name, (None,) * value.ndim)
                assert torch.equal(found, narrow(value, kept))
                assert found.shape == own[parameter_name].shape
    step(small, carried, inputs)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        for slot, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][number][slot]))
    assert all(torch.equal(tensor, full[key]) for key, tensor in named_tensors(model).items())


def test_settings_of_parameter_groups_stay() -> None:
    model, inputs = build(networks.Residual)
    optimizer = torch.optim.SGD(
        [{"params": model.stem.parameters(), "lr": 0.5}, {"params": model.head.parameters()}], 0.1
    )
    graph = trace(model, inputs)
    small = graph.slim(halves(graph))
    carried = carry_optimizer(optimizer, graph, small)
    assert [group["lr"] for group in carried.param_groups] == [0.5, 0.1]
    assert [len(group["params"]) for group in carried.param_groups] == [3, 2]
    assert carried.param_groups[0]["params"][0] is small.stem[0].weight
    carried.param_groups[0]["lr"] = 9.0
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_stranger_is_refused() -> None:
    model, inputs = build(networks.Residual)
    graph = trace(model, inputs)
    small = graph.slim(halves(graph))
    with pytest.raises(GraphError, match="does not have"):
        carry_optimizer(torch.optim.SGD([nn.Parameter(torch.zeros(3))], 0.1), graph, small)
    with pytest.raises(GraphError, match="not known"):
        carry_optimizer(torch.optim.SGD(model.parameters(), 0.1), graph, build(networks.Residual)[0])


def test_averages_fit_the_slim_network() -> None:
    model, inputs = build(networks.Residual)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    step(model, torch.optim.SGD(model.parameters(), 0.1), inputs)
    averaged.update_parameters(model)
    graph = trace(model, inputs)
    small = graph.slim(halves(graph))
    result = carry_averages(averaged.state_dict(), graph, small)
    other = torch.optim.swa_utils.AveragedModel(small)
    other.load_state_dict(result)
    wanted = graph.slim(halves(graph), averaged.module)
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), other.module.parameters(), strict=True))
    with pytest.raises(GraphError, match="full network"):
        carry_averages(result, graph, small)
