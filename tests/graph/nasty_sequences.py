"""Networks over sequences, sets and graphs as people write them when nobody thinks of pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.base import conv


class EinsumAttention(nn.Module):
    """Attention by einsum on weights with an axis for the heads, and heads that talk."""

    inputs = staticmethod(lambda: torch.randn(2, 5, 12))

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(3, 16, 6) * 0.3) for _ in range(3))
        self.o, self.talk = nn.Parameter(torch.randn(3, 6, 16) * 0.3), nn.Parameter(torch.randn(3, 3))
        self.embed, self.norm, self.head = nn.Linear(12, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q, k, v = (torch.einsum("bnd,hdk->bhnk", y, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bhik,bhjk->bhij", q, k) / 6**0.5
        scores = torch.einsum("bhij,hg->bgij", scores.softmax(-1), self.talk)
        x = x + torch.einsum("bhij,bhjk,hkd->bid", scores, v, self.o)
        return self.head(x.mean(1))


class TextReader(nn.Module):
    """CRNN: columns of a feature map are read by a GRU in both directions."""

    inputs = staticmethod(lambda: torch.randn(2, 1, 8, 24))

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(1, 6), nn.MaxPool2d(2), conv(6, 8), nn.MaxPool2d((2, 1)))
        self.squeeze = nn.Linear(8 * 2, 10)
        self.read = nn.GRU(10, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        b, c, h, w = x.shape
        x = self.squeeze(x.permute(0, 3, 1, 2).reshape(b, w, c * h))
        return self.out(self.read(x)[0]).log_softmax(-1)


class Routed(nn.Module):
    """Tokens go to the expert that scores best, gathered and written back by index."""

    inputs = staticmethod(lambda: torch.randn(2, 7, 6))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.route = nn.Linear(6, 12), nn.Linear(12, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)) for _ in range(3)])
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.route(flat).softmax(-1).topk(2, dim=-1)
        mixed = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == number)
            if rows.numel():
                mixed.index_add_(0, rows, expert(flat.index_select(0, rows)) * weights[rows, slot, None])
        return self.out(x + mixed.view_as(x))


class MessagePassing(nn.Module):
    """A graph network: messages along edges, summed at their ends, then the best of each graph."""

    inputs = staticmethod(
        lambda: {
            "nodes": torch.randn(6, 5),
            "edges": torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 0, 4, 5, 3, 2, 1]]),
            "of_graph": torch.tensor([0, 0, 0, 1, 1, 1]),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.update = nn.Linear(5, 8), nn.Linear(16, 10), nn.Linear(18, 8)
        self.gate = nn.GRUCell(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, nodes: Tensor, edges: Tensor, of_graph: Tensor) -> Tensor:
        h, (source, target) = torch.relu(self.embed(nodes)), edges
        for _ in range(2):
            sent = torch.relu(self.message(torch.cat([h[source], h[target]], -1)))
            got = sent.new_zeros(h.shape[0], sent.shape[1])
            got = got.scatter_add(0, target[:, None].expand(-1, sent.shape[1]), sent)
            h = self.gate(self.update(torch.cat([h, got], 1)), h)
        pooled = torch.zeros(2, h.shape[1]).index_add(0, of_graph, h)
        return self.out(pooled)


class Latents(nn.Module):
    """Learned queries, repeated over the batch, read the tokens through the library's attention."""

    inputs = staticmethod(lambda: torch.randn(2, 9, 6))

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 4, 12))
        self.embed = nn.Linear(6, 10)
        self.read = nn.MultiheadAttention(12, 3, kdim=10, vdim=10, batch_first=True)
        self.think = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, norm_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory, q = self.embed(x), self.queries.expand(x.size(0), -1, -1)
        q = q + self.read(q, memory, memory, need_weights=False)[0]
        return self.head(self.think(q).mean(1))


@dataclass
class Detections:
    logits: Tensor
    more: dict[str, Any]


class Stepwise(nn.Module):
    """An LSTM cell in a Python loop, attention over what it has seen, an object as the result."""

    inputs = staticmethod(lambda: torch.randn(2, 5, 6))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.look, self.out = (
            nn.Linear(6, 7),
            nn.LSTMCell(7, 9),
            nn.Linear(9, 9),
            nn.Linear(18, 3),
        )

    def forward(self, x: Tensor) -> Detections:
        h = c = x.new_zeros(x.shape[0], self.cell.hidden_size)
        seen = []
        for step in self.embed(x).unbind(1):
            h, c = self.cell(step, (h, c))
            seen.append(h)
        past = torch.stack(seen, 1)
        weights = torch.softmax((past * self.look(h).unsqueeze(1)).sum(-1), dim=1)
        context = (weights[..., None] * past).sum(1)
        logits = self.out(torch.cat([h, context], -1))
        return Detections(logits, {"weights": weights, "steps": [len(seen)]})


class WidthsOfItsOwn(nn.Module):
    """Attention that takes the size of a head from the width of its input, and numbers that it uses twice."""

    inputs = staticmethod(lambda: torch.randn(2, 6, 5))

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.inner, self.width = 3, 10, 24
        self.embed, self.qkv, self.proj = nn.Linear(5, 24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.bias = nn.Parameter(torch.randn(3, 6, 6))
        self.up, self.down, self.head = nn.Linear(24, 34), nn.Linear(10, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = ((q @ k.transpose(-2, -1)) * 0.35 + self.bias).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, c))
        gate, rest = self.up(x).split([self.inner, self.width], -1)
        return self.head((x + self.down(gate.relu()) + rest.tanh()).mean(1))


class OneHead(nn.Module):
    """Attention with a single head over a part of the channels, whose sizes are numbers and their difference."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 6, 6))

    def __init__(self) -> None:
        super().__init__()
        self.width, self.part, self.key = 14, 6, 5
        self.stem, self.norm = conv(3, 14), nn.GroupNorm(1, 6)
        self.qkv, self.proj = nn.Conv2d(6, 2 * 5 + 6, 1), nn.Conv2d(14, 14, 1)
        self.q, self.k, self.v, self.head = nn.Linear(14, 10), nn.Linear(14, 10), nn.Linear(14, 14), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        x1, x2 = torch.split(x, [self.part, self.width - self.part], dim=1)
        parts = torch.split(self.qkv(self.norm(x1)), [self.key, self.key, self.part], dim=1)
        q, k, v = (part.flatten(2) for part in parts)
        mixed = v @ ((q.transpose(-2, -1) @ k) * 0.4).softmax(-1).transpose(-2, -1)
        x = x + self.proj(torch.cat([mixed.reshape(b, self.part, h, w), x2], 1).relu())
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens).reshape(b, h * w, 1, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        tokens = tokens + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return self.head(tokens.mean(1))
