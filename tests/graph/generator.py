"""Random networks: a seed makes a program of steps on feature maps and a head, with everything mixed freely."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attend(nn.Module):
    """Attention over the positions of a feature map; its sizes follow its weights."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        parts = self.qkv(self.norm(tokens)).chunk(3, -1)
        q, k, v = (part.view(b, h * w, -1, self.size).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (tokens + self.out(mixed)).transpose(1, 2).reshape(b, -1, h, w)


class Excite(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Program(nn.Module):
    """Runs its steps one after the other on a growing list of feature maps of one size in space."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.steps: list[tuple[Callable[..., Tensor], list[int]]] = []
        draw = random.Random(seed)
        widths = [4 * draw.randint(1, 3)]
        self.stem = self._conv(3, widths[0], draw)
        for _ in range(draw.randint(3, 8)):
            widths.append(self._grow(widths, draw))
        last = widths[-1]
        self.flat = draw.random() < 0.4
        self.head = nn.Linear(last * (4 if self.flat else 1), 3)

    def _conv(self, i: int, o: int, draw: random.Random, groups: int = 1) -> nn.Module:
        norm = draw.choice([nn.BatchNorm2d(o), nn.GroupNorm(2, o) if o % 4 == 0 else nn.Identity(), nn.Identity()])
        act = draw.choice([nn.ReLU(), nn.SiLU(), nn.PReLU(o), nn.Hardswish(), nn.LeakyReLU(0.1, True)])
        k = draw.choice([1, 3])
        return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=draw.random() < 0.5), norm, act)

    def _own(self, module: nn.Module) -> nn.Module:
        self.parts.append(module)
        return module

    def _grow(self, widths: list[int], draw: random.Random) -> int:
        """Add a step; returns the width of what it makes."""
        at = draw.randrange(max(0, len(widths) - 3), len(widths))
        width = widths[at]
        alike = [n for n, one in enumerate(widths) if one == width]
        kind = draw.choice(
            ["conv", "conv", "add", "residual", "cat", "split", "halves", "excite", "depthwise", "grouped", "shuffle",
             "attend", "pool", "shared", "transposed", "gate"]
        )  # fmt: skip
        out = 4 * draw.randint(1, 3)
        if kind == "add" and len(alike) > 1:
            self.steps.append((lambda a, b: a + b, draw.sample(alike, 2)))
            return width
        if kind == "residual":
            inner = self._own(nn.Sequential(self._conv(width, out, draw), self._conv(out, width, draw)))
            self.steps.append((lambda a: a + inner(a), [at]))
            return width
        if kind == "cat" and len(widths) > 1:
            chosen = draw.sample(range(len(widths)), 2)
            if sum(widths[n] for n in chosen) <= 32:
                self.steps.append((lambda a, b: torch.cat([a, b], 1), chosen))
                return sum(widths[n] for n in chosen)
        if kind == "split":
            left, right = (self._own(self._conv(width // 2, width // 2, draw)) for _ in range(2))
            self.steps.append((lambda a: torch.cat([left(a.chunk(2, 1)[0]), right(a.chunk(2, 1)[1])], 1), [at]))
            return width
        if kind == "halves":
            self.steps.append((lambda a: a[:, : a.shape[1] // 2] * a[:, a.shape[1] // 2 :].sigmoid(), [at]))
            if width // 2 >= 2:
                return width // 2
            self.steps.pop()
        if kind == "excite":
            excite = self._own(Excite(width, draw.randint(2, 6)))
            self.steps.append((lambda a: excite(a), [at]))
            return width
        if kind == "depthwise":
            times = draw.choice([1, 2])
            deep = self._own(self._conv(width, width * times, draw, groups=width))
            if width * times <= 32:
                self.steps.append((lambda a: deep(a), [at]))
                return width * times
        if kind == "grouped" and width % 4 == 0:
            grouped = self._own(self._conv(width, out, draw, groups=4))
            self.steps.append((lambda a: grouped(a), [at]))
            return out
        if kind == "shuffle" and width % 4 == 0:
            self.steps.append(
                (lambda a: a.view(len(a), 2, a.shape[1] // 2, *a.shape[2:]).transpose(1, 2).reshape(a.shape), [at])
            )
            return width
        if kind == "attend":
            attend = self._own(Attend(width, draw.choice([2, 3]), 4))
            self.steps.append((lambda a: attend(a), [at]))
            return width
        if kind == "pool":
            self.steps.append((lambda a: F.max_pool2d(a, 3, 1, 1) - F.avg_pool2d(a, 3, 1, 1), [at]))
            return width
        if kind == "shared":
            same = self._own(self._conv(width, width, draw))
            self.steps.append((lambda a: same(same(a)), [at]))
            return width
        if kind == "transposed":
            up = self._own(nn.ConvTranspose2d(width, out, 2, stride=2))
            self.steps.append((lambda a: F.max_pool2d(up(a), 2), [at]))
            return out
        if kind == "gate":
            gate = self._own(nn.Conv2d(width, 1, 1))
            self.steps.append((lambda a: a * gate(a).sigmoid(), [at]))
            return width
        plain = self._own(self._conv(width, out, draw))
        self.steps.append((lambda a: plain(a), [at]))
        return out

    def forward(self, x: Tensor) -> Tensor:
        made = [self.stem(x)]
        for step, at in self.steps:
            made.append(step(*(made[n] for n in at)))
        last = made[-1]
        return self.head(F.adaptive_avg_pool2d(last, 2).flatten(1) if self.flat else last.mean((2, 3)))
