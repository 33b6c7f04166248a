"""Architectures over sequences in small: language, sound, states."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.base import conv


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
