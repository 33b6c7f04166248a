"""Networks as they are met in the field: a detector's shared head, a small language model, a recurrent encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.base import conv


class SharedHeads(nn.Module):
    """Anchor-free detection: one tower for all levels, a scale for each, boxes as distributions over bins."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 32, 32))

    def __init__(self, classes: int = 3, bins: int = 4) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        self.no = classes + 4 * bins
        self.stages = nn.ModuleList([conv(3, 8, stride=2), conv(8, 12, stride=2), conv(12, 16, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv2d(width, 10, 1) for width in (8, 12, 16)])
        self.tower = nn.Sequential(conv(10, 10), conv(10, 10))
        self.halves = nn.ModuleList([conv(5, 6), conv(5, 6)])
        self.box, self.cls = nn.Conv2d(12, 4 * bins, 1), nn.Conv2d(10, classes, 1)
        self.scales = nn.Parameter(torch.ones(3))
        self.register_buffer("project", torch.arange(bins, dtype=torch.float32))

    def level(self, x: Tensor, scale: Tensor) -> Tensor:
        x = self.tower(x)
        sizes = [x.shape[1] // 2, x.shape[1] - x.shape[1] // 2]
        parts = [half(part) for half, part in zip(self.halves, torch.split(x, sizes, dim=1), strict=True)]
        return torch.cat([self.box(torch.cat(parts, 1)) * scale, self.cls(x)], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top, made = None, []
        for number in reversed(range(3)):
            side = self.lateral[number](maps[number])
            top = side if top is None else side + F.interpolate(top, size=side.shape[-2:], mode="nearest")
            made.append(self.level(top, self.scales[number]))
        flat = torch.cat([one.view(one.shape[0], self.no, -1) for one in made], 2)
        box, cls = flat.split((4 * self.bins, self.classes), 1)
        b, _, n = box.shape
        box = (box.view(b, 4, self.bins, n).softmax(2) * self.project.view(1, 1, -1, 1)).sum(2)
        return torch.cat([box, cls.sigmoid()], 1), made


class RotaryBlock(nn.Module):
    def __init__(self, width: int, heads: int, shared: int, size: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, size
        self.one, self.two = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q = nn.Linear(width, heads * size, bias=False)
        self.kv = nn.Linear(width, 2 * shared * size, bias=False)
        self.o = nn.Linear(heads * size, width, bias=False)
        self.up, self.down = nn.Linear(width, 24, bias=False), nn.Linear(12, width, bias=False)

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        return x * cos + torch.cat([-two, one], -1) * sin

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.one(x)
        q = self.q(y).view(b, n, self.heads, self.size).transpose(1, 2)
        k, v = self.kv(y).view(b, n, 2, self.shared, self.size).permute(2, 0, 3, 1, 4)
        q, k = self.turn(q, cos, sin), self.turn(k, cos, sin)
        k, v = (one.repeat_interleave(self.heads // self.shared, dim=1) for one in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        gate, value = self.up(self.two(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class RotaryLanguage(nn.Module):
    """A decoder with rotary positions, keys and values shared by several heads, gated layers and tied embeddings."""

    inputs = staticmethod(lambda: torch.randint(0, 20, (2, 7)))

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 10)
        self.blocks = nn.ModuleList([RotaryBlock(10, 4, 2, 6) for _ in range(2)])
        self.norm, self.out = nn.RMSNorm(10), nn.Linear(10, 20, bias=False)
        self.out.weight = self.table.weight
        angles = torch.outer(torch.arange(16.0), 1 / 100 ** (torch.arange(0, 6, 2) / 6))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:n], self.sin[:n])
        return self.out(self.norm(x))


class ThreeScales(nn.Module):
    """A decoder that joins three scales; depthwise layers that double the channels, and a shuffle behind them."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 16, 16))

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 6), conv(6, 8, stride=2), conv(8, 10, stride=2)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = conv(16, 8, groups=4)
        self.mix = conv(6 + 8 + 10, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(one)
        three = self.three(two)
        wide = self.deep(two)
        b, c, h, w = wide.shape
        wide = wide.reshape(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        two = self.grouped(wide)
        size = one.shape[2:]
        up = [F.interpolate(y, size=size, mode="bilinear", align_corners=False) for y in (two, three)]
        return self.out(self.mix(torch.cat([one, *up], dim=1)))


class PatchTokens(nn.Module):
    """Patches by reshape and permute, written as a rearranging library would; the library's attention; and back."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.stem = conv(3, 6)
        self.embed = nn.Linear(6 * patch * patch, 16)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.back = nn.Linear(16, 6 * patch * patch)
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        p = self.patch
        tokens = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), -1)
        y = self.embed(tokens)
        y = self.norm(y + self.attend(y, y, y, need_weights=False)[0])
        y = self.back(y).reshape(b, h // p, w // p, p, p, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return self.out(x + y)


class RecurrentMaps(nn.Module):
    """A convolutional LSTM unrolled over frames; its norm is a function on buffers of its own."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 3, 8, 8))

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.hidden = hidden
        self.read = conv(3, 4)
        self.gates = nn.Conv2d(4 + hidden, 4 * hidden, 3, padding=1)
        self.scale, self.shift = nn.Parameter(torch.rand(hidden) + 0.5), nn.Parameter(torch.randn(hidden))
        self.register_buffer("mean", torch.randn(hidden) * 0.1)
        self.register_buffer("var", torch.rand(hidden) + 0.5)
        self.out = nn.Linear(hidden, 3)

    def forward(self, frames: Tensor) -> Tensor:
        b, steps, _, height, width = frames.shape
        h = frames.new_zeros(b, self.hidden, height, width)
        c = torch.zeros_like(h)
        for step in range(steps):
            made = self.gates(torch.cat([self.read(frames[:, step]), h], dim=1))
            i, f, o, g = torch.split(made, self.hidden, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            h = F.batch_norm(h, self.mean, self.var, self.scale, self.shift, self.training)
        return self.out(h.amax((2, 3)))


class Dispatched(nn.Module):
    """Named branches, chosen by what the inputs are called; a gate by chunk and one by the library."""

    inputs = staticmethod(lambda: {"image": torch.randn(2, 3, 8, 8), "sound": torch.randn(2, 1, 20)})

    def __init__(self) -> None:
        super().__init__()
        self.readers = nn.ModuleDict(
            {
                "image": nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                "sound": nn.Sequential(nn.Conv1d(1, 16, 5), nn.GLU(1), nn.AdaptiveMaxPool1d(1), nn.Flatten()),
                "unused": nn.Linear(4, 8),
            }
        )
        self.join = nn.Bilinear(8, 8, 12)
        self.out = nn.ModuleDict({"label": nn.Linear(6, 3), "score": nn.Linear(6, 1)})

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        read = {name: self.readers[name](value) for name, value in given.items()}
        value, gate = self.join(*read.values()).chunk(2, dim=-1)
        return {name: head(value * gate.sigmoid()) for name, head in self.out.items()}


FIELD = [SharedHeads, RotaryLanguage, ThreeScales, PatchTokens, RecurrentMaps, Dispatched]
