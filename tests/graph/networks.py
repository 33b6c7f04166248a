"""Small networks, each with one thing that breaks channel pruning when it is overlooked."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.base import Net, conv, stir
from tests.graph.layers import (
    ChannelAttention,
    GroupNormed,
    Normalised,
    Parametric,
    PixelShuffled,
    Standardised,
    Transposed,
    UnknownOperation,
    UpAndDown,
    Volumes,
    WeightNormed,
)
from tests.graph.tokens import (
    CrossAttention,
    FixedHeadSize,
    GroupedQuery,
    LayerNormed,
    LibraryAttention,
    NumbersOfItsOwn,
    Recurrent,
    RoutedExperts,
    Tokens,
    WrittenAttention,
)


class Residual(Net):
    def __init__(self) -> None:
        super().__init__(8, 12)
        self.a, self.b, self.c, self.short = conv(8, 6), conv(6, 8), conv(8, 12), nn.Conv2d(8, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        x = x + self.b(self.a(x))
        return self.short(x).add_(self.c(x))


class Concatenated(Net):
    def __init__(self) -> None:
        super().__init__(8, 18)
        self.a, self.b = conv(8, 6), conv(8, 4)

    def body(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), x, self.b(x)], 1)


class DenseAndAdded(Net):
    """Concatenation on one path, addition over the joined parts on another."""

    def __init__(self) -> None:
        super().__init__(8, 12)
        self.a, self.b, self.c, self.d = conv(8, 4), conv(12, 4), conv(12, 12), conv(12, 4)

    def body(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.a(x)], 1)
        z = y + self.c(y)
        return torch.cat([self.b(z), self.d(y), self.a(x)], 1)


class Depthwise(Net):
    def __init__(self) -> None:
        super().__init__(8, 6)
        self.deep, self.point = conv(8, 24, groups=8), conv(24, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.point(self.deep(x))


class Grouped(Net):
    def __init__(self) -> None:
        super().__init__(12, 8)
        self.group, self.point = conv(12, 16, groups=4), conv(16, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.point(self.group(x))


class Shuffled(Net):
    def __init__(self) -> None:
        super().__init__(12, 16)
        self.left = conv(6, 6)
        self.last = conv(12, 16)

    def body(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, 1)
        x = torch.cat([one, self.left(two)], 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.last(x)


class SqueezeExcite(Net):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        s = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(F.silu(self.down(s))))


class SplitGates(Net):
    def __init__(self) -> None:
        super().__init__(8, 6)
        self.gates, self.last = nn.Conv2d(8, 12, 1), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        value, gate = self.gates(x).split(6, dim=1)
        return self.last(value * torch.sigmoid(gate))


class UnequalSplit(Net):
    def __init__(self) -> None:
        super().__init__(12, 12)
        self.one, self.two = conv(4, 4), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [4, 8], 1)
        return torch.cat([self.one(a), self.two(b)], 1)


class HalfBySlice(Net):
    def __init__(self) -> None:
        super().__init__(12, 6)
        self.one, self.two = conv(6, 6), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        return self.one(x[:, : c // 2]) + self.two(x[:, c // 2 :])


class FirstChannels(Net):
    """Reads a written-down number of channels from the front."""

    def __init__(self) -> None:
        super().__init__(12, 6)
        self.one, self.two = conv(5, 6), conv(12, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.one(x[:, :5]) + self.two(x)


class Flattened(Net):
    def __init__(self) -> None:
        super().__init__(8, 6 * 16)
        self.a = conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(F.max_pool2d(self.a(self.stem(x)), 2), 1))


class SharedTwice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.same = conv(8, 8)
        self.alias = self.same[0]
        self.between = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.alias(self.between(self.same(x)))


class Functional(Net):
    def __init__(self) -> None:
        super().__init__(8, 6)
        self.kernel = nn.Parameter(torch.randn(6, 8, 3, 3) * 0.2)
        self.shift = nn.Parameter(torch.randn(6))
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.kernel, self.shift, padding=1) * self.scale)


class HardCodedView(Net):
    def __init__(self) -> None:
        super().__init__(8, 12)
        self.a, self.b = conv(8, 12), conv(12, 12)

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x).view(-1, 3, 4, 8, 8).flatten(1, 2)
        return self.b(x)


class SeveralInputs(Net):
    inputs = staticmethod(lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 4)))

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(4, 8)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.head((self.stem(x) * self.side(y)[:, :, None, None]).mean((2, 3)))


class DictOutput(Net):
    inputs = staticmethod(lambda: {"x": torch.randn(2, 3, 8, 8)})

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mask = conv(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(self.stem(x))
        return {"logits": self.head(x.mean((2, 3))), "more": [self.mask(x), {"none": None}]}


class OneOutput(Net):
    """A convolution with one output channel is not depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.a = nn.Conv2d(8, 1, 1), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.a(x) * torch.sigmoid(self.gate(x))


class DataDependent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.a(x) if float(x.abs().sum()) >= 0 else self.b(x)


class Shifted(Net):
    """Writes into slices of a tensor of zeros."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.a, self.b = conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out = torch.zeros_like(x)
        out[:, :, 1:] = x[:, :, :-1]
        buffer = x.new_zeros(x.shape)
        buffer[:, :, :, 1:] = x[:, :, :, :-1]
        return self.b(out + buffer)


class PaddedShortcut(Net):
    """Pads channels instead of projecting them."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.a = conv(8, 16)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) + F.pad(x, (0, 0, 0, 0, 4, 4)))


class ScaledByWidth(Net):
    """Multiplies by a number computed from a width: the number would change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * x.shape[1] ** -0.5)


class CrossStage(Net):
    """Halves that go on as a growing list and are concatenated; a pyramid of poolings."""

    def __init__(self) -> None:
        super().__init__(8, 24)
        self.first, self.last = conv(8, 12, 1), conv(24, 8, 1)
        self.steps = nn.ModuleList([conv(6, 6), conv(6, 6)])

    def body(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        parts.extend(step(parts[-1]) for step in self.steps)
        parts = [self.last(torch.cat(parts, 1))]
        parts.extend(F.max_pool2d(parts[-1], 3, 1, 1) for _ in range(2))
        return torch.cat(parts, 1)


class TrainingHead(Net):
    """A head that runs only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux = conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(self.stem(x))
        y = self.head(x.mean((2, 3)))
        return (y, self.aux(x.mean((2, 3)))) if self.training else y


class NumberAsTensor(Net):
    """Divides by a number that becomes a tensor before any operation sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x / torch.sqrt(torch.tensor(x.shape[1])))


NETWORKS: tuple[type[nn.Module], ...] = (
    Residual, Concatenated, DenseAndAdded, Depthwise, Grouped, Shuffled, SqueezeExcite, SplitGates, UnequalSplit,
    HalfBySlice, FirstChannels, Flattened, SharedTwice, Functional, HardCodedView, SeveralInputs, DictOutput,
    Transposed, Parametric, WrittenAttention, FixedHeadSize, LibraryAttention, OneOutput, DataDependent, GroupNormed,
    LayerNormed, ChannelAttention, Shifted, PaddedShortcut, PixelShuffled, ScaledByWidth, Normalised,
    UnknownOperation, Recurrent, Volumes, Tokens, WeightNormed, TrainingHead, CrossStage, UpAndDown, GroupedQuery,
    RoutedExperts, NumbersOfItsOwn, CrossAttention, NumberAsTensor, Standardised,
)  # fmt: skip


def build(kind: type[nn.Module], seed: int = 0) -> tuple[nn.Module, Any]:
    """The network with random statistics, so that no mistake hides behind ones and zeros, and its inputs."""
    torch.manual_seed(seed)
    model = kind()
    stir(model)
    return model, kind.inputs()  # type: ignore[operator]
