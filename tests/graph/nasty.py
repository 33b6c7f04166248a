"""Networks as people write them when nobody thinks of pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torchvision.ops import DeformConv2d

from tests.graph.base import conv, stir
from tests.graph.nasty_sequences import (
    EinsumAttention,
    Latents,
    MessagePassing,
    OneHead,
    Routed,
    Stepwise,
    TextReader,
    WidthsOfItsOwn,
)


class AttentionGates(nn.Module):
    """A U-Net whose skips are gated by what comes from below."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 16, 16))

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 6), conv(6, 8), conv(8, 12)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(12, 8, 2, 2), nn.ConvTranspose2d(8, 6, 2, 2)])
        self.theta = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(6, 3, 1)])
        self.phi = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(6, 3, 1)])
        self.psi = nn.ModuleList([nn.Conv2d(4, 1, 1), nn.Conv2d(3, 1, 1)])
        self.merge = nn.ModuleList([conv(16, 8), conv(12, 6)])
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for number, layer in enumerate(self.down):
            x = layer(x if not number else F.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for up, theta, phi, psi, merge in zip(self.up, self.theta, self.phi, self.psi, self.merge, strict=True):
            x, skip = up(x), kept.pop()
            gate = torch.sigmoid(psi(F.relu(theta(x) + phi(skip))))
            x = merge(torch.cat((skip * gate, x), dim=1))
        return self.out(x)


class WeightedPyramid(nn.Module):
    """BiFPN: levels are summed with learned weights that are normalised on the way."""

    inputs = staticmethod(lambda: torch.randn(1, 3, 16, 16))

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([conv(3, 6), conv(6, 10), conv(10, 12)])
        self.lateral = nn.ModuleList([nn.Conv2d(i, 8, 1) for i in (6, 10, 12)])
        self.w_down, self.w_up = nn.Parameter(torch.rand(2, 2)), nn.Parameter(torch.rand(2, 3))
        self.fuse = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1), nn.SiLU()) for _ in range(4)]
        )
        self.boxes, self.classes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = []
        for number, (level, lateral) in enumerate(zip(self.levels, self.lateral, strict=True)):
            x = level(F.avg_pool2d(x, 2) if number else x)
            found.append(lateral(x))
        down, up = F.relu(self.w_down), F.relu(self.w_up)
        down, up = down / (down.sum(1, keepdim=True) + 1e-4), up / (up.sum(1, keepdim=True) + 1e-4)
        top = [found[2]]
        for level in (1, 0):
            high = F.interpolate(top[0], scale_factor=2, mode="nearest")
            top.insert(0, self.fuse[level](down[level, 0] * found[level] + down[level, 1] * high))
        for level in (1, 2):
            low, w = F.max_pool2d(top[level - 1], 2), up[level - 1]
            top[level] = self.fuse[level + 1](w[0] * found[level] + w[1] * top[level] + w[2] * low)
        flat = [torch.cat([self.boxes(t), self.classes(t)], 1).flatten(2) for t in top]
        made = torch.cat(flat, 2).transpose(1, 2)
        return {"boxes": made[..., :4], "classes": made[..., 4:]}


class BareExcite(nn.Module):
    """Squeeze and excite written with functions on parameters that belong to no layer."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        for name, shape in {"w1": (5, 12), "b1": (5,), "w2": (12, 5, 1, 1), "scale": (1, 12, 1, 1)}.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.5))
        self.mix = nn.ParameterList([torch.randn(6, 12, 3, 3) * 0.2, torch.randn(6)])
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        s = F.relu(F.linear(F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], self.w1, self.b1))
        x = x * torch.sigmoid(F.conv2d(s[..., None, None], getattr(self, "w2"))) * self.scale  # noqa: B009
        weight, bias = self.mix
        return self.head(F.conv2d(x, weight, bias, padding="same").relu().amax((-1, -2)))


class Deformable(nn.Module):
    """Convolutions whose taps are displaced, with a mask, between ordinary ones."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.offset, self.mask = conv(3, 8), nn.Conv2d(8, 18, 3, padding=1), nn.Conv2d(8, 9, 3, padding=1)
        self.deform, self.norm, self.head = DeformConv2d(8, 10, 3, padding=1), nn.GroupNorm(1, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(self.deform(x, self.offset(x) * 0.1, self.mask(x).sigmoid()))
        return self.head(x.mean((2, 3)))


class Softened(nn.Module):
    """A parametrization that keeps the weight within a box."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.tanh(weight) * 0.5


class Parametrized(nn.Module):
    """Weights that are computed: weight norm, spectral norm, one's own, and two on top of each other."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.b = parametrizations.spectral_norm(nn.ConvTranspose2d(8, 6, 2, 2))
        self.c = nn.Conv2d(6, 10, 3)
        parametrize.register_parametrization(self.c, "weight", Softened())
        self.d = parametrizations.weight_norm(nn.Linear(10, 7))
        parametrize.register_parametrization(self.d, "bias", Softened())
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.head(F.gelu(self.d(x.mean((2, 3)))))


class LayerScaled(nn.Module):
    """ConvNeXt blocks: depthwise, permute, linear layers, a scale for every channel, permute back."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 16, 16))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(
            [
                nn.ModuleDict(
                    {"depth": nn.Conv2d(8, 8, 7, padding=3, groups=8), "norm": nn.LayerNorm(8, eps=1e-6),
                     "up": nn.Linear(8, 20), "down": nn.Linear(20, 8)}
                )
                for _ in range(2)
            ]
        )  # fmt: skip
        self.gammas = nn.ParameterList([torch.rand(8) for _ in range(2)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, gamma in zip(self.blocks, self.gammas, strict=True):
            y = block["depth"](x).permute(0, 2, 3, 1)
            y = gamma * block["down"](F.gelu(block["up"](block["norm"](y))))
            x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean([-2, -1]))


class SuperResolution(nn.Module):
    """Space into channels, residual blocks with channel attention, channels into space."""

    inputs = staticmethod(lambda: torch.randn(1, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(12, 8, 3, padding=1)
        self.body = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8)) for _ in range(2)])
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.up = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 12, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(F.pixel_unshuffle(x, 2))
        z = y
        for block in self.body:
            z = z + block(z) * self.squeeze(z).sigmoid()
        return F.pixel_shuffle(self.up(z + y), 2) + F.interpolate(x, scale_factor=2, mode="bicubic")


class Hourglass(nn.Module):
    """One block at every scale, its results stacked, the largest taken, and the rest by Python's own sum."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 16, 16))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.weigh = (
            conv(3, 8),
            nn.Sequential(conv(8, 5), conv(5, 8)),
            nn.Parameter(torch.ones(3)),
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        scales = [F.adaptive_max_pool2d(x, 16 // 2**n) for n in range(3)]
        back = [F.interpolate(self.block(s), size=x.shape[-2:], mode="bilinear") for s in scales]
        stacked = torch.stack(back, dim=1)
        best = stacked.max(dim=1).values
        mean = sum(w * b for w, b in zip(self.weigh.softmax(0), back, strict=True))
        return self.head(torch.cat([best, mean], 1).flatten(2).mean(-1))


class Conditional(nn.Module):
    """Kernels mixed for every example, and applied as one grouped convolution over the batch."""

    inputs = staticmethod(lambda: torch.randn(3, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = conv(3, 8), nn.Linear(8, 4)
        self.kernels, self.head = nn.Parameter(torch.randn(4, 6, 8, 3, 3) * 0.2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        mix = self.route(x.mean((2, 3))).sigmoid()
        kernels = torch.einsum("be,eoikl->boikl", mix, self.kernels)
        o = kernels.shape[1]
        y = F.conv2d(x.reshape(1, b * c, h, w), kernels.reshape(b * o, c, 3, 3), padding=1, groups=b)
        return self.head(y.view(b, o, h, w).relu().mean((2, 3)))


class Blurred(nn.Module):
    """A fixed kernel, repeated for as many channels as there are, before every stride; a ghost of half the width."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 16, 16))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.main, self.cheap = conv(3, 8), conv(8, 6, 1), conv(6, 6, groups=6)
        self.register_buffer("kernel", torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16)
        self.head = nn.Linear(12, 3)

    def blur(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        return F.conv2d(
            F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel[None, None].repeat(c, 1, 1, 1), stride=2, groups=c
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(self.blur(self.stem(x)))
        x = torch.cat([x, self.cheap(x)], 1)
        return self.head(self.blur(x).mean((2, 3)))


class Modulated(nn.Module):
    """A condition scales and shifts every channel; pairs of channels compete; features are crossed at the end."""

    inputs = staticmethod(lambda: (torch.randn(2, 3, 8, 8), torch.tensor([1, 4])))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.table, self.film = conv(3, 12), nn.Embedding(5, 7), nn.Linear(7, 24)
        self.body, self.one, self.two = nn.Conv2d(12, 16, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 1)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        gamma, beta = self.film(F.silu(self.table(label)))[:, :, None, None].chunk(2, 1)
        x = self.body((1 + gamma) * self.stem(x) + beta)
        b, c, h, w = x.shape
        x = x.view(b, c // 2, 2, h, w).amax(2)
        crossed = torch.bmm(self.one(x).flatten(2), self.two(x).flatten(2).transpose(1, 2)) / (h * w)
        return self.head(crossed.flatten(1))


NASTY: tuple[type[nn.Module], ...] = (
    AttentionGates, WeightedPyramid, BareExcite, EinsumAttention, Deformable, Parametrized, LayerScaled, TextReader,
    Routed, MessagePassing, SuperResolution, Latents, Hourglass, Stepwise, Conditional, Blurred, Modulated,
    WidthsOfItsOwn, OneHead,
)  # fmt: skip


def build(kind: type[nn.Module], seed: int = 0) -> tuple[nn.Module, Any]:
    """The network with random statistics, in eval mode, and its inputs."""
    torch.manual_seed(seed)
    model = kind()
    stir(model)
    maker: Callable[[], Any] = kind.inputs  # type: ignore[assignment]
    return model.eval(), maker()
