"""Groups that everything must pass: zeroed, the output no longer depends on the input; of all others it does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from halp_iee import models, trace
from halp_iee.graph import ChannelGraph
from halp_iee.graph.passages import _carried, passages


def depends(model: nn.Module, shape: tuple[int, ...]) -> bool:
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        outputs = [model(x) for x in (one, two)]
    if isinstance(outputs[0], Tensor):
        return not torch.equal(*outputs)
    return all(not torch.equal(a, b) for a, b in zip(*outputs, strict=True))  # of several outputs, each


def silenced(graph: ChannelGraph, model: nn.Module, group: str) -> nn.Module:
    """The network in which whatever makes this group's channels makes zeros."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for op in graph.ops:
            if _carried(op) == group:
                for name in op.params:
                    if "running_var" not in name:
                        tensors[name].zero_()
    return model


def check(model: nn.Module, shape: tuple[int, ...]) -> tuple[frozenset[str], list[str]]:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    graph = trace(model.eval(), torch.randn(shape))
    found, exact = passages(graph), copy.deepcopy(model).double()
    every = [group.name for group in graph.groups if group.prunable]
    for name in every:
        assert depends(silenced(graph, exact, name), shape) == (name not in found), name
    return found, every


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1_cifar"])
def test_small_networks(name: str) -> None:
    found, every = check(models.build(name, 10, 1), (1, 1, 28, 28))
    trunk = {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    assert found == (trunk if name == "resnet20" else set(every))


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "mnasnet0_5"])
def test_networks_of_torchvision(name: str) -> None:
    found, every = check(models.build(name), (1, 3, 64, 64))
    assert found
    assert name == "squeezenet1_1" or found < set(every)


class TwoHeads(nn.Module):
    """A shared stem, a squeeze-and-excite, and two heads with a hidden layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = x.mean((2, 3))
        return self.heads[0](x), self.heads[1](x)


def test_one_of_two_outputs_is_enough_and_a_gate_is_no_passage() -> None:
    found, every = check(TwoHeads(), (1, 3, 8, 8))
    assert set(every) - found == {"squeeze"}
