"""A small network, its graph and a cost whose staircase is made up, for tests of the methods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halp_iee.graph import ChannelGraph, trace
from halp_iee.graph.records import Width


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.short = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.short(x))


class Tiny(nn.Module):
    """A stem, two residual blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.bn(self.stem(x)))).mean((2, 3)))


@dataclass(frozen=True)
class FakeLayer:
    name: str
    c_in: Width
    c_out: Width

    def ms(self, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        return 0.002 * np.ceil(np.asarray(c_in) / 2) * np.ceil(np.asarray(c_out) / 2) + 0.001


class FakeCost:
    """Every convolution and linear layer costs a staircase over both widths."""

    source, fixed_ms = "modelled", 0.01

    def __init__(self, graph: ChannelGraph) -> None:
        self.layers = tuple(
            FakeLayer(op.module, op.c_in, op.c_out) for op in graph.ops if op.kind in ("conv", "linear")
        )
        self.full = graph.full_widths

    def predict(self, widths: dict[str, int]) -> float:
        now = {**self.full, **widths}
        return self.fixed_ms + sum(float(la.ms(la.c_in(now), la.c_out(now))) for la in self.layers)

    @property
    def dense_ms(self) -> float:
        return self.predict({})


@dataclass(frozen=True)
class World:
    model: nn.Module
    graph: ChannelGraph
    cost: FakeCost
    images: Tensor
    labels: Tensor


@pytest.fixture
def world() -> World:
    torch.manual_seed(0)
    model = Tiny()
    graph = trace(model, torch.randn(2, 2, 8, 8))
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (64,), generator=generator)
    images = torch.randn(64, 2, 8, 8, generator=generator) + labels.reshape(-1, 1, 1, 1)
    return World(model, graph, FakeCost(graph), images, labels)
