"""Small networks over tokens, each with one thing that breaks pruning when it is overlooked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WrittenAttention(nn.Module):
    """Attention whose sizes follow the weights, with a fixed scale."""

    inputs = staticmethod(lambda: torch.randn(2, 6, 10))

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(10, 16)
        self.q, self.k, self.v = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(16, 16)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-1, -2) * 0.3).softmax(-1)
        return self.head(x + self.out((scores @ v).transpose(1, 2).flatten(2)))


class FixedHeadSize(nn.Module):
    """Attention by the library, with a written-down size of a head: whole heads can go."""

    inputs = staticmethod(lambda: torch.randn(2, 6, 10))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(10, 16), nn.Linear(16, 3 * 20)
        self.out, self.head = nn.Linear(20, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = (part.view(b, n, -1, 5).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.head(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class LibraryAttention(nn.Module):
    inputs = staticmethod(lambda: torch.randn(2, 6, 16))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0),
            2,
            enable_nested_tensor=False,
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


class LayerNormed(nn.Module):
    inputs = staticmethod(lambda: torch.randn(2, 6, 10))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(10, 16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


class Recurrent(nn.Module):
    inputs = staticmethod(lambda: torch.randn(2, 6, 10))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 16), nn.Linear(16, 8)
        self.rnn, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.b(F.relu(self.a(x))))[0][:, -1])


class Tokens(nn.Module):
    """Embedding tied to the output, and learned positions."""

    inputs = staticmethod(lambda: torch.randint(0, 20, (2, 6)))

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.position = nn.Parameter(torch.randn(1, 6, 12))
        self.first = nn.Parameter(torch.randn(1, 1, 12))
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.out = nn.Linear(12, 20, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x) + self.position
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        return self.out(x + self.down(F.relu(self.up(x))))


class GroupedQuery(nn.Module):
    """A decoder layer: RMS norm, rotated positions, fewer key heads than query heads, a gated feed-forward."""

    inputs = staticmethod(lambda: torch.randint(0, 30, (2, 6)))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.two = nn.Embedding(30, 16), nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v, self.o = (
            nn.Linear(16, 16),
            nn.Linear(16, 8),
            nn.Linear(16, 8),
            nn.Linear(16, 16),
        )
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 30)
        self.register_buffer("cosine", torch.randn(6, 4))
        self.register_buffer("sine", torch.randn(6, 4))

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * self.cosine + torch.cat([-x[..., half:], x[..., :half]], -1) * self.sine

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.one(x)
        b, n, _ = y.shape
        q, k, v = (p(y).view(b, n, -1, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        y = self.two(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class RoutedExperts(nn.Module):
    """Experts that run only on the examples that are sent to them."""

    inputs = staticmethod(lambda: torch.randn(6, 5))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.route, self.head = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights, chosen = self.route(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, ranks = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, expert(x[rows]) * weights[rows, ranks, None])
        return self.head(out)


class NumbersOfItsOwn(nn.Module):
    """Sizes kept as numbers: heads, the size of a head, a split, a shape, and one that is no size at all."""

    inputs = staticmethod(lambda: torch.randn(2, 6, 10))

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim, self.width, self.wide, self.narrow, self.turns = 4, 5, 20, 12, 8, 4
        self.shape = (1, 1, 16)
        self.embed, self.qkv = nn.Linear(10, 16), nn.Linear(16, 3 * 20)
        self.out, self.up, self.down, self.head = (
            nn.Linear(20, 16), nn.Linear(16, 12 + 8), nn.Linear(12, 16), nn.Linear(16, 3)
        )  # fmt: skip
        self.gate, self.scale = nn.Linear(8, 12), nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.scale.view(self.shape)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.width)
        x = x + self.out(mixed)
        value, gate = self.up(x).split([self.wide, self.narrow], -1)
        x = x + self.down(value * torch.sigmoid(self.gate(gate)))
        for _ in range(self.turns):
            x = torch.tanh(x)
        return self.head(x)


class CrossAttention(nn.Module):
    """The library's attention over another sequence, with masks, tokens first, weights asked for and not used."""

    inputs = staticmethod(lambda: (torch.randn(5, 2, 10), torch.randn(6, 2, 9)))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 16), nn.Linear(9, 16)
        self.attention, self.head = nn.MultiheadAttention(16, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.a(x), self.b(y)
        mask = torch.ones(5, 6).triu(2).bool()
        padding = torch.zeros(2, 6).bool()
        padding[:, -1] = True
        return self.head(x + self.attention(x, y, y, key_padding_mask=padding, attn_mask=mask)[0])
