"""Random networks: a seed makes a program of steps on feature maps and a head, with everything mixed freely."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.base import stir

SEEDS = 24
"""Programs that the tests run."""

MOST_CHANNELS = 32

Step = tuple[Callable[..., Tensor], list[int], int]
"""What is computed, from which of the maps so far, and the width of the result."""


class Attend(nn.Module):
    """Attention over the positions of a feature map; its sizes follow its weights, and queries may share keys."""

    def __init__(self, width: int, heads: int, size: int, share: int) -> None:
        super().__init__()
        self.size, self.share = size, share
        self.norm = nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, heads * share * size), nn.Linear(width, 2 * heads * size)
        self.out = nn.Linear(heads * share * size, width)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        y = self.norm(tokens)
        parts = (self.q(y), *self.kv(y).chunk(2, -1))
        q, k, v = (part.view(b, h * w, -1, self.size).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.share > 1).transpose(1, 2).flatten(2)
        return (tokens + self.out(mixed)).transpose(1, 2).reshape(b, -1, h, w)


class Excite(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Gated(nn.Module):
    """A feed-forward over channels-last positions whose first layer makes values and their gates."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(width), nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1))
        return x + self.down(F.glu(self.up(y))).permute(0, 3, 1, 2)


class Rows(nn.Module):
    """A recurrent layer along the rows of a feature map."""

    def __init__(self, width: int, hidden: int, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.read, self.back = kind(width, hidden, batch_first=True), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(b * h, w, c)
        return x + self.back(self.read(rows)[0]).view(b, h, w, -1).permute(0, 3, 1, 2)


class Raw(nn.Module):
    """A convolution by functions on parameters of no layer, and a scale and shift that are repeated over space."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(out, width, 3, 3) * 0.2)
        self.scale, self.shift = nn.Parameter(torch.rand(out, 1, 1) + 0.5), nn.Parameter(torch.randn(1, out, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1) * self.scale + self.shift


class Program(nn.Module):
    """Runs its steps one after the other on a growing list of feature maps of one size in space."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.steps: list[tuple[Callable[..., Tensor], list[int]]] = []
        self.draw = random.Random(seed)
        self.widths = [4 * self.draw.randint(1, 3)]
        self.stem = self._conv(3, self.widths[0])
        for _ in range(self.draw.randint(3, 8)):
            step = self._step()
            self.steps.append(step[:2])
            self.widths.append(step[2])
        last = self.widths[-1]
        self.flat, self.named = self.draw.random() < 0.4, self.draw.random() < 0.3
        self.head = nn.Linear(last * (4 if self.flat else 1), 3)

    def _own(self, module: nn.Module) -> int:
        """The number of a new part. A step must not hold the part itself: a copy of the network has its own."""
        self.parts.append(module)
        return len(self.parts) - 1

    def _conv(self, i: int, o: int, groups: int = 1) -> nn.Module:
        draw = self.draw
        norm = draw.choice([nn.BatchNorm2d(o), nn.GroupNorm(2, o) if o % 4 == 0 else nn.Identity(), nn.Identity()])
        act = draw.choice([nn.ReLU(), nn.SiLU(), nn.PReLU(o), nn.Hardswish(), nn.LeakyReLU(0.1, True)])
        k = draw.choice([1, 3])
        return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=draw.random() < 0.5), norm, act)

    def _step(self) -> Step:
        draw, widths = self.draw, self.widths
        at = draw.randrange(max(0, len(widths) - 3), len(widths))
        makers = (self._joining, self._cutting, self._channelwise, self._mixing)
        return draw.choice(makers)(at, widths[at]) or self._plain(at, widths[at])

    def _plain(self, at: int, width: int) -> Step:
        out = 4 * self.draw.randint(1, 3)
        if self.draw.random() < 0.3:
            raw = self._own(Raw(width, out))
            return (lambda p, a: p[raw](a)), [at], out
        plain = self._own(self._conv(width, out))
        return (lambda p, a: p[plain](a)), [at], out

    def _joining(self, at: int, width: int) -> Step | None:
        """Several maps become one."""
        draw, widths = self.draw, self.widths
        kind = draw.choice(["add", "largest", "stack", "residual", "cat", "shared"])
        alike = [n for n, one in enumerate(widths) if one == width]
        if kind in ("add", "largest", "stack"):
            if len(alike) < 2:
                return None
            chosen = draw.sample(alike, 2)
            functions: dict[str, Callable[..., Tensor]] = {
                "add": lambda p, a, b: a + b,
                "largest": lambda p, a, b: torch.maximum(a, b),
                "stack": lambda p, a, b: torch.stack([a, b], 1).mean(1),
            }
            return functions[kind], chosen, width
        if kind == "residual":
            inner = 4 * draw.randint(1, 3)
            both = self._own(nn.Sequential(self._conv(width, inner), self._conv(inner, width)))
            return (lambda p, a: a + p[both](a)), [at], width
        if kind == "shared":
            same = self._own(self._conv(width, width))
            return (lambda p, a: p[same](p[same](a))), [at], width
        chosen = draw.sample(range(len(widths)), min(2, len(widths)))
        total = sum(widths[n] for n in chosen)
        return ((lambda p, *maps: torch.cat(maps, 1)), chosen, total) if total <= MOST_CHANNELS else None

    def _cutting(self, at: int, width: int) -> Step | None:
        """A map is cut along its channels."""
        kind = self.draw.choice(["split", "halves", "slice", "shuffle", "pixels"])
        if kind == "split":
            left, right = (self._own(self._conv(width // 2, width // 2)) for _ in range(2))
            return (
                (lambda p, a: torch.cat([p[left](a.chunk(2, 1)[0]), p[right](a.chunk(2, 1)[1])], 1)), [at], width,
            )  # fmt: skip
        if kind == "halves" and width >= 4:
            return (lambda p, a: a[:, : a.shape[1] // 2] * a[:, a.shape[1] // 2 :].sigmoid()), [at], width // 2
        if kind == "slice" and width >= 8:
            return (lambda p, a: a[:, 2:]), [at], width - 2  # positions that are written down
        if kind == "shuffle" and width % 4 == 0:
            return (
                (lambda p, a: a.view(len(a), 2, a.shape[1] // 2, *a.shape[2:]).transpose(1, 2).reshape(a.shape)),
                [at], width,
            )  # fmt: skip
        if kind == "pixels" and width % 4 == 0 and width >= 8:
            return (lambda p, a: F.max_pool2d(F.pixel_shuffle(a, 2), 2)), [at], width // 4
        return None

    def _channelwise(self, at: int, width: int) -> Step | None:
        """Every channel, or group of channels, by itself."""
        draw = self.draw
        kind = draw.choice(["depthwise", "grouped", "pool", "gate", "excite", "branch"])
        if kind == "depthwise" and width * 2 <= MOST_CHANNELS:
            times = draw.choice([1, 2])
            deep = self._own(self._conv(width, width * times, groups=width))
            return (lambda p, a: p[deep](a)), [at], width * times
        if kind == "grouped" and width % 4 == 0:
            out = 4 * draw.randint(1, 3)
            grouped = self._own(self._conv(width, out, groups=4))
            return (lambda p, a: p[grouped](a)), [at], out
        if kind == "gate":
            gate = self._own(nn.Conv2d(width, 1, 1))
            return (lambda p, a: a * p[gate](a).sigmoid()), [at], width
        if kind == "excite":
            excite = self._own(Excite(width, draw.randint(2, 6)))
            return (lambda p, a: p[excite](a)), [at], width
        if kind == "branch":
            calm, wild = self._own(self._conv(width, width)), self._own(self._conv(width, width))
            # Which branch runs follows the data.
            return (lambda p, a: p[calm](a) if float(a.new_zeros(1)) < 1 else p[wild](a)), [at], width
        return (lambda p, a: F.max_pool2d(a, 3, 1, 1) - F.avg_pool2d(a, 3, 1, 1)), [at], width

    def _mixing(self, at: int, width: int) -> Step | None:
        """Positions or channels are mixed."""
        draw = self.draw
        kind = draw.choice(["attend", "gated", "rows", "transposed", "written"])
        if kind == "attend":
            attend = self._own(Attend(width, draw.choice([2, 3]), 4, draw.choice([1, 2])))
            return (lambda p, a: p[attend](a)), [at], width
        if kind == "gated":
            gated = self._own(Gated(width, draw.randint(3, 8)))
            return (lambda p, a: p[gated](a)), [at], width
        if kind == "rows":
            rows = self._own(Rows(width, draw.randint(3, 6), draw.choice([nn.GRU, nn.LSTM, nn.RNN])))
            return (lambda p, a: p[rows](a)), [at], width
        if kind == "written":
            return (
                (lambda p, a: a.reshape(len(a), width, -1).softmax(-1).view(len(a), width, *a.shape[2:])),
                [at],
                width,
            )
        out = 4 * draw.randint(1, 3)
        up = self._own(nn.ConvTranspose2d(width, out, 2, stride=2))
        return (lambda p, a: F.max_pool2d(p[up](a), 2)), [at], out

    def forward(self, x: Tensor) -> Any:
        made = [self.stem(x)]
        for step, at in self.steps:
            made.append(step(self.parts, *(made[n] for n in at)))
        last = made[-1]
        y = self.head(F.adaptive_avg_pool2d(last, 2).flatten(1) if self.flat else last.mean((2, 3)))
        return {"logits": y, "more": [last.mean()]} if self.named else y


def build(seed: int) -> tuple[nn.Module, Any]:
    """The network with random statistics, in eval mode, and its inputs."""
    torch.manual_seed(seed)
    model = Program(seed)
    stir(model)
    return model.eval(), torch.randn(2, 3, 8, 8)
