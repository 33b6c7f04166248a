"""Small versions of whole architectures as people write them, sizes in the forward pass and all."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.networks import conv, stir


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


class RootMeanSquare(nn.Module):
    """Written by hand, as most decoders have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(width) + 0.5), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(kind)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat((-b, a), -1) * sin


class DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, shared: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.q = nn.Linear(width, heads * self.size, bias=False)
        self.k = nn.Linear(width, shared * self.size, bias=False)
        self.v = nn.Linear(width, shared * self.size, bias=False)
        self.o = nn.Linear(heads * self.size, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.norm1, self.norm2 = RootMeanSquare(width), RootMeanSquare(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.norm1(x)
        q = self.q(y).view(b, t, self.heads, self.size).transpose(1, 2)
        k = self.k(y).view(b, t, self.shared, self.size).transpose(1, 2)
        v = self.v(y).view(b, t, self.shared, self.size).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        times = self.heads // self.shared
        k, v = (z[:, :, None].expand(b, self.shared, times, t, self.size).reshape(b, -1, t, self.size) for z in (k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(self.size)
        scores = scores + torch.full((t, t), float("-inf")).triu(1)
        y = (F.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v).transpose(1, 2).contiguous().view(b, t, -1)
        x = x + self.o(y)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Rotary positions, fewer key heads than query heads, gated feed-forward, tied embedding."""

    inputs = staticmethod(lambda: torch.randint(0, 50, (2, 6)))

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.blocks = nn.ModuleList(DecoderBlock(32, 4, 2, 24) for _ in range(2))
        self.norm, self.out = RootMeanSquare(32), nn.Linear(32, 50, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("rates", 1.0 / 100 ** (torch.arange(0, 8, 2).float() / 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1]).float()[:, None] * self.rates
        angle = torch.cat((angle, angle), -1)
        y = self.table(x)
        for block in self.blocks:
            y = block(y, angle.cos(), angle.sin())
        return self.out(self.norm(y))


class WidthFromInput(nn.Module):
    """Attention whose widths all come from the tensor that it is given, with a mask in a buffer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_head, self.n_embd = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        q = q.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        v = v.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class LanguageModel(nn.Module):
    inputs = staticmethod(lambda: torch.randint(0, 30, (2, 7)))

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(30, 24), nn.Embedding(16, 24)
        self.h = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(24),
                    "attn": WidthFromInput(24, 4),
                    "ln_2": nn.LayerNorm(24),
                    "mlp": nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)),
                }
            )
            for _ in range(2)
        )
        self.ln, self.head = nn.LayerNorm(24), nn.Linear(24, 30, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        y = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for block in self.h:
            y = y + block["attn"](block["ln_1"](y))
            y = y + block["mlp"](block["ln_2"](y))
        if targets is None:
            return self.head(self.ln(y[:, [-1], :])), None
        y = self.head(self.ln(y))
        return y, F.cross_entropy(y.view(-1, y.size(-1)), targets.view(-1))


class SeparatedSources(nn.Module):
    """Conv-TasNet: an encoder of waves, temporal blocks, masks for two sources, a decoder."""

    inputs = staticmethod(lambda: torch.randn(2, 1, 160))

    def __init__(self, basis: int = 16, width: int = 12, hidden: int = 20, sources: int = 2) -> None:
        super().__init__()
        self.basis, self.sources = basis, sources
        self.encoder = nn.Conv1d(1, basis, 16, 8, bias=False)
        self.norm, self.into = nn.GroupNorm(1, basis), nn.Conv1d(basis, width, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Sequential(nn.Conv1d(width, hidden, 1), nn.PReLU(), nn.GroupNorm(1, hidden)),
                    nn.Sequential(
                        nn.Conv1d(hidden, hidden, 3, padding=2**i, dilation=2**i, groups=hidden),
                        nn.PReLU(),
                        nn.GroupNorm(1, hidden),
                    ),
                    nn.Conv1d(hidden, width, 1),
                    nn.Conv1d(hidden, width, 1),
                ]
            )
            for i in range(3)
        )
        self.out = nn.Sequential(nn.PReLU(), nn.Conv1d(width, sources * basis, 1), nn.Sigmoid())
        self.decoder = nn.ConvTranspose1d(basis, 1, 16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        waves = F.relu(self.encoder(x))
        y, skip = self.into(self.norm(waves)), 0.0
        for first, deep, on, aside in self.blocks:
            z = deep(first(y))
            y, skip = y + on(z), skip + aside(z)
        masks = self.out(skip).view(x.shape[0], self.sources, self.basis, -1)
        parts = (waves.unsqueeze(1) * masks).view(x.shape[0] * self.sources, self.basis, -1)
        return self.decoder(parts).view(x.shape[0], self.sources, -1)


class StateSpace(nn.Module):
    """A selective state space layer, its recurrence written out."""

    inputs = staticmethod(lambda: torch.randn(2, 6, 10))

    def __init__(self, width: int = 12, inner: int = 16, states: int = 4, rank: int = 3) -> None:
        super().__init__()
        self.inner, self.states, self.rank = inner, states, rank
        self.embed, self.norm = nn.Linear(10, width), nn.LayerNorm(width)
        self.into = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.x_proj, self.dt = nn.Linear(inner, rank + 2 * states, bias=False), nn.Linear(rank, inner)
        self.a_log = nn.Parameter(torch.log(torch.arange(1, states + 1).float()).repeat(inner, 1))
        self.d, self.out = nn.Parameter(torch.ones(inner)), nn.Linear(inner, width, bias=False)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        y, z = self.into(self.norm(x)).split([self.inner, self.inner], -1)
        y = F.silu(self.conv(y.transpose(1, 2))[:, :, :t].transpose(1, 2))
        step, into, out = self.x_proj(y).split([self.rank, self.states, self.states], -1)
        step = F.softplus(self.dt(step))
        decay = torch.exp(torch.einsum("btd,dn->btdn", step, -torch.exp(self.a_log)))
        drive = torch.einsum("btd,btn,btd->btdn", step, into, y)
        state, made = torch.zeros(b, self.inner, self.states), []
        for i in range(t):
            state = decay[:, i] * state + drive[:, i]
            made.append(torch.einsum("bdn,bn->bd", state, out[:, i]))
        y = torch.stack(made, 1) + y * self.d
        return self.head(x + self.out(y * F.silu(z)))


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


class RecurrentText(nn.Module):
    inputs = staticmethod(lambda: torch.randint(0, 20, (3, 5)))

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 10)
        self.rnn = nn.LSTM(10, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(24, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.table(x))
        _, h = self.gru(y)
        return self.head(h[-1])


class Siamese(nn.Module):
    inputs = staticmethod(lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)))

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.project, self.join = nn.Linear(12, 10), nn.Bilinear(10, 10, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        a, b = (F.normalize(self.project(self.net(z)), dim=1) for z in (x, y))
        return {"near": (a * b).sum(1), "apart": torch.cdist(a, b), "kind": self.join(a, b)}


class Experts(nn.Module):
    """Only the tokens that a gate sends reach an expert."""

    inputs = staticmethod(lambda: torch.randn(2, 6, 10))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(10, 12), nn.Linear(12, 3)
        self.w1, self.w2 = nn.Parameter(torch.randn(3, 12, 16) * 0.3), nn.Parameter(torch.randn(3, 16, 12) * 0.3)
        self.more = nn.ModuleList(nn.Sequential(nn.Linear(12, 14), nn.GELU(), nn.Linear(14, 12)) for _ in range(3))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weight, chosen = torch.topk(self.gate(x).softmax(-1), 2, -1)
        hidden = torch.einsum("btd,edh->bteh", x, self.w1).relu()
        dense = torch.einsum("bteh,ehd->bted", hidden, self.w2)
        x = x + (dense.gather(2, chosen[..., None].expand(-1, -1, -1, 12)) * weight[..., None]).sum(2)
        flat, made = x.reshape(-1, x.shape[-1]), torch.zeros_like(x).reshape(-1, x.shape[-1])
        for number, expert in enumerate(self.more):
            rows, slot = torch.where(chosen.reshape(-1, 2) == number)
            made.index_add_(0, rows, expert(flat[rows]) * weight.reshape(-1, 2)[rows, slot, None])
        return self.head(x + made.view(x.shape))


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
