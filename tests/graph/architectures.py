"""Small versions of whole architectures as people write them, sizes in the forward pass and all."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.base import conv, stir
from tests.graph.sequence_architectures import (
    Decoder,
    Experts,
    LanguageModel,
    RecurrentText,
    SeparatedSources,
    Siamese,
    StateSpace,
)


class Bottleneck(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.a, self.b, self.add = conv(i, o), conv(o, o), i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x)) if self.add else self.b(self.a(x))


class SplitConcat(nn.Module):
    """Half goes on, and every step is joined."""

    def __init__(self, i: int, o: int, n: int) -> None:
        super().__init__()
        self.half = o // 2
        self.a, self.b = conv(i, 2 * self.half, 1), conv((2 + n) * self.half, o, 1)
        self.steps = nn.ModuleList(Bottleneck(self.half, self.half) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.a(x).chunk(2, 1))
        y.extend(step(y[-1]) for step in self.steps)
        return self.b(torch.cat(y, 1))


class PooledPyramid(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.a, self.b, self.pool = conv(i, i // 2, 1), conv(i * 2, o, 1), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.pool(x)
        z = self.pool(y)
        return self.b(torch.cat((x, y, z, self.pool(z)), 1))


class OneStageDetector(nn.Module):
    """Backbone, neck up and down, a head a level that decodes a distribution over distances and a grid."""

    inputs = staticmethod(lambda: torch.randn(1, 3, 64, 64))

    def __init__(self, classes: int = 4, bins: int = 8) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        self.stem, self.down1, self.down2 = conv(3, 8, stride=2), conv(8, 16, stride=2), conv(16, 32, stride=2)
        self.down3 = conv(32, 48, stride=2)
        self.c1, self.c2 = SplitConcat(16, 16, 1), SplitConcat(32, 32, 2)
        self.pyramid = PooledPyramid(48, 48)
        self.up, self.n1 = nn.Upsample(scale_factor=2.0), SplitConcat(80, 32, 1)
        self.n2, self.n3 = conv(32, 32, stride=2), SplitConcat(80, 48, 1)
        self.boxes = nn.ModuleList(nn.Sequential(conv(c, 16), nn.Conv2d(16, 4 * bins, 1)) for c in (32, 48))
        self.kinds = nn.ModuleList(nn.Sequential(conv(c, 16), nn.Conv2d(16, classes, 1)) for c in (32, 48))
        self.mean = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.mean.weight.data[:] = torch.arange(bins, dtype=torch.float)[None, :, None, None]

    def forward(self, x: Tensor) -> Any:
        a = self.c2(self.down2(self.c1(self.down1(self.stem(x)))))
        b = self.pyramid(self.down3(a))
        n = self.n1(torch.cat([self.up(b), a], 1))
        levels = [n, self.n3(torch.cat([self.n2(n), b], 1))]
        raw = [torch.cat((box(y), kind(y)), 1) for y, box, kind in zip(levels, self.boxes, self.kinds, strict=True)]
        flat = torch.cat([one.view(one.shape[0], 4 * self.bins + self.classes, -1) for one in raw], 2)
        box, kind = flat.split((4 * self.bins, self.classes), 1)
        b_, _, n_ = box.shape
        distance = self.mean(box.view(b_, 4, self.bins, n_).transpose(2, 1).softmax(1)).view(b_, 4, n_)
        low, high = distance.chunk(2, 1)
        points = torch.stack(torch.meshgrid(torch.arange(n_).float(), torch.zeros(1), indexing="ij"))[:, :, 0]
        return torch.cat([points - low, points + high, kind.sigmoid()], 1), raw


class UNet(nn.Module):
    inputs = staticmethod(lambda: torch.randn(2, 3, 20, 20))

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.d1, self.d2, self.d3 = (
            nn.Sequential(conv(3, width), conv(width, width)), conv(width, 2 * width), conv(2 * width, 4 * width)
        )  # fmt: skip
        self.u1, self.c1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), conv(4 * width, 2 * width)
        self.u2, self.c2 = nn.Upsample(scale_factor=2, mode="bilinear"), conv(3 * width, width)
        self.gate = nn.Sequential(nn.Conv2d(width, 1, 1), nn.Sigmoid())
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.d3(F.max_pool2d(b, 2))
        y = self.u1(c)
        y = F.pad(y, [0, b.shape[3] - y.shape[3], 0, b.shape[2] - y.shape[2]])
        y = self.c2(torch.cat([a * self.gate(a), self.u2(self.c1(torch.cat([b, y], 1)))], 1))
        return {"mask": self.out(y), "features": [c.mean((2, 3)).norm(dim=1)]}


class GlobalResponse(nn.Module):
    """ConvNeXt V2: a response normalised by the mean over the channels."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.gamma, self.beta = nn.Parameter(torch.rand(1, 1, 1, 24)), nn.Parameter(torch.rand(1, 1, 1, 24))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(self.up(self.norm(self.deep(x).permute(0, 2, 3, 1))))
        g = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        y = self.gamma * (y * (g / (g.mean(-1, keepdim=True) + 1e-6))) + self.beta + y
        return self.head((x + self.down(y).permute(0, 3, 1, 2)).mean((2, 3)))


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Module):
    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = StandardisedConv(3, 8, 3, padding=1), nn.GroupNorm(4, 8), StandardisedConv(8, 12, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.n(self.a(x))))).mean((2, 3)))


class SpectrallyNormed(nn.Module):
    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        normed = nn.utils.parametrizations.spectral_norm
        self.a, self.b, self.c = normed(nn.Conv2d(3, 8, 3)), normed(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.leaky_relu(self.b(F.leaky_relu(self.a(x), 0.2)), 0.2))).mean((2, 3)))


class Spectral(nn.Module):
    """A filter in the frequency domain, one complex weight a channel and frequency."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 3)
        self.filter = nn.Parameter(torch.randn(8, 8, 5, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        f = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        return self.head(self.mix(x + torch.fft.irfft2(f, s=x.shape[2:], norm="ortho")).mean((2, 3)))


class Unfolded(nn.Module):
    """Patches by unfold, a product written as einsum, and fold."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weights = conv(3, 8), nn.Conv2d(8, 9, 1)
        self.last, self.head = conv(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        patches = F.unfold(x, 3, padding=1).view(b, c, 9, h * w)
        y = torch.einsum("bckn,bkn->bcn", patches, self.weights(x).view(b, 9, h * w).softmax(1)).view(b, c, h, w)
        y = F.fold(F.unfold(y, 2, stride=2), (h, w), 2, stride=2)
        return self.head(self.last(y).mean((2, 3)))


class Sampled(nn.Module):
    """Deformed by its own grid: grid_sample, roll, flip, cumulative sums and a deformable convolution."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.stem, self.theta, self.offset = conv(3, 8), nn.Linear(8, 6), nn.Conv2d(8, 18, 3, padding=1)
        self.deform, self.last, self.head = DeformConv2d(8, 10, 3, padding=1), conv(10, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        grid = F.affine_grid(self.theta(x.mean((2, 3))).view(-1, 2, 3).tanh(), list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        x = x + x.roll(1, 2).flip(3) + x.cumsum(3)
        x = self.deform(x, self.offset(x))
        return self.head(self.last(x).mean((2, 3)))


class Windows(nn.Module):
    """Shifted windows, widths read from the input, scale computed, a table of relative positions."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.stem = heads, nn.Conv2d(3, width, 1)
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(49, heads))
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None]) + 3
        self.register_buffer("index", (apart[0] * 7 + apart[1]).flatten())
        self.reduce, self.head = nn.Linear(4 * width, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-2, -2), (1, 2)).view(b, h // 4, 4, w // 4, 4, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).reshape(y.shape[0], 16, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        a = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        a = (a + self.table[self.index].view(16, 16, -1).permute(2, 0, 1).unsqueeze(0)).softmax(-1)
        y = self.proj((a @ v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (2, 2), (1, 2))
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.head(F.gelu(self.reduce(x)).mean((1, 2)))


class ChannelConvolution(nn.Module):
    """Efficient channel attention: a 1-D convolution over the channels mixes neighbours, so they must stay."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.eca = conv(3, 8), conv(8, 8), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        return self.head((x * self.eca(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]).mean((2, 3)))


class Quantised(nn.Module):
    """A codebook: the nearest of its vectors, found by distance."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.into, self.back = conv(3, 10), nn.Conv2d(10, 6, 1), conv(6, 8)
        self.codes, self.out = nn.Embedding(7, 6), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.into(self.a(x)).permute(0, 2, 3, 1)
        flat = z.reshape(-1, z.shape[-1])
        far = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codes.weight.t() + self.codes.weight.pow(2).sum(1)
        picked = F.one_hot(far.argmin(1), 7).float() @ self.codes.weight
        z = z + (picked.view(z.shape) - z).detach()
        return self.out(self.back(z.permute(0, 3, 1, 2))), far.min()


class CachedTable(nn.Module):
    """Keeps an indexed table between calls, and drops it when it is told that its tensors have changed."""

    inputs = staticmethod(lambda: torch.randn(2, 5, 6))

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.into, self.out = 4, nn.Linear(6, 12), nn.Linear(12, 3)
        self.table = nn.Parameter(torch.randn(4, 9))
        self.register_buffer("index", torch.randint(0, 9, (5, 5)))
        self.cache: dict[str, Tensor] = {}

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self.cache = {}
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or "bias" not in self.cache:
            self.cache["bias"] = self.table[:, self.index]
        v = self.into(x).view(x.shape[0], 5, self.heads, 3).transpose(1, 2)
        y = (v @ v.transpose(2, 3) * 0.3 + self.cache["bias"]).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


ARCHITECTURES: tuple[type[nn.Module], ...] = (
    OneStageDetector, Decoder, LanguageModel, SeparatedSources, StateSpace, UNet, GlobalResponse, Standardised,
    SpectrallyNormed, RecurrentText, Siamese, Experts, Spectral, Unfolded, Sampled, Windows, ChannelConvolution,
    Quantised, CachedTable,
)  # fmt: skip


def build(kind: type[nn.Module], seed: int = 0) -> tuple[nn.Module, Any]:
    """The network with random statistics, in eval mode, and its inputs."""
    torch.manual_seed(seed)
    model = kind()
    stir(model)
    return model.eval(), kind.inputs()  # type: ignore[operator]
