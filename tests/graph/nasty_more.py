"""More networks that nobody wrote with pruning in mind: views, strides, tied weights, state, sliced tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.graph.base import conv


class TiedAutoencoder(nn.Module):
    """The decoder's weights are the encoder's, transposed; a convolution's too."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2)
        self.weight = nn.Parameter(torch.randn(10, 8) * 0.2)
        self.bias = nn.ParameterList([nn.Parameter(torch.randn(n) * 0.1) for n in (8, 10, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, self.bias[0], padding=1))
        hidden = F.gelu(x.permute(0, 2, 3, 1) @ self.weight.t() + self.bias[1])
        back = F.relu(hidden @ self.weight + self.bias[2]).permute(0, 3, 1, 2)
        return F.conv_transpose2d(back, self.kernel, padding=1)


class SlicedParameters(nn.Module):
    """One weight holds several layers, cut out of it by slices at run time."""

    inputs = staticmethod(lambda: torch.randn(2, 5, 6))

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 8)
        self.packed = nn.Parameter(torch.randn(30, 8) * 0.3)
        self.bias = nn.Parameter(torch.randn(30) * 0.1)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.into(x))
        gate = F.linear(x, self.packed[:12], self.bias[:12])
        value = F.linear(x, self.packed[12:24], self.bias[12:24])
        last = self.packed.narrow(0, 24, 6)
        return self.out(F.linear(x, last, self.bias[24:])) + (F.silu(gate) * value).sum(-1, keepdim=True)


class InterleavedGate(nn.Module):
    """Gate and value are every other channel; rotary pairs too."""

    inputs = staticmethod(lambda: torch.randn(2, 5, 6))

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(8)
        self.down = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        gate, value = y[..., ::2], y[..., 1::2]
        return x + self.down(self.norm(F.gelu(gate) * value))


class StridedJoin(nn.Module):
    """Even and odd channels go their own ways and come back interleaved."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.even, self.odd = conv(6, 6), conv(6, 6)
        self.mix = nn.Conv2d(12, 8, 1)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.empty_like(x)
        y[:, ::2] = self.even(x[:, ::2])
        y[:, 1::2] = self.odd(x[:, 1::2])
        return self.out(F.relu(self.mix(y)).mean((2, 3)))


class ListsOfMaps(nn.Module):
    """A detector's head: dictionaries of lists of maps, every level by one shared tower."""

    inputs = staticmethod(lambda: torch.randn(1, 3, 32, 32))

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(
            {"c3": conv(3, 6, stride=2), "c4": conv(6, 8, stride=2), "c5": conv(8, 10, stride=2)}
        )
        self.lateral = nn.ModuleDict({name: nn.Conv2d(n, 8, 1) for name, n in (("c3", 6), ("c4", 8), ("c5", 10))})
        self.tower = nn.Sequential(conv(8, 8), conv(8, 12))
        self.box, self.label = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 3, 1)
        self.scales = nn.ParameterList([nn.Parameter(torch.tensor(1.0 + k)) for k in range(3)])
        self.register_buffer("gain", torch.tensor([0.5, 1.0, 2.0, 4.0]))

    def forward(self, x: Tensor) -> dict[str, list[Tensor] | dict[str, Tensor]]:
        levels: dict[str, Tensor] = {}
        for name, stage in self.stages.items():
            x = stage(x)
            levels[name] = self.lateral[name](x)
        found: dict[str, list[Tensor] | dict[str, Tensor]] = {"boxes": [], "labels": [], "maps": levels}
        for number, level in enumerate(levels.values()):
            y = self.tower(level)
            found["boxes"].append(F.relu(self.box(y) * self.scales[number]) * self.gain[None, :, None, None])  # type: ignore[union-attr]
            found["labels"].append(self.label(y).flatten(2).permute(0, 2, 1))  # type: ignore[union-attr]
        return found


class CrossStageSplits(nn.Module):
    """What one stage concatenates the next one splits elsewhere; skips jump over both."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.one, self.two, self.three = conv(4, 6), conv(8, 10), conv(6, 6)
        self.merge = conv(16, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.split([4, 8], 1)
        y = torch.cat([self.two(b), self.one(a)], 1)
        left, right = torch.tensor_split(y, [10], 1)
        z = torch.cat([left, self.three(right) + right], 1)
        return self.out((self.merge(z) + x).amax((2, 3)))


class ShuffledGroups(nn.Module):
    """A grouped convolution behind a shuffled concatenation, a transposed grouped one behind that."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), conv(3, 6)
        self.shuffle = nn.ChannelShuffle(2)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2, groups=2)
        self.each = nn.ConvTranspose2d(8, 8, 2, 2, groups=8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(torch.cat([self.a(x), self.b(x)], 1))
        return self.out(F.relu(self.each(F.relu(self.up(F.relu(self.grouped(x)))))))


class NormedWeights(nn.Module):
    """Weight norm along either axis, spectral norm, orthogonal weights, in one chain with a residual."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.b = parametrizations.weight_norm(nn.Conv2d(8, 6, 3, padding=1), dim=1)
        self.c = parametrizations.weight_norm(nn.Conv2d(6, 8, 1), dim=None)
        self.d = parametrizations.weight_norm(nn.ConvTranspose2d(8, 5, 2, 2), dim=1)
        self.e = parametrizations.spectral_norm(nn.Linear(5, 4))
        self.f = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = x + self.c(F.relu(self.b(x)))
        return self.f(F.relu(self.e(F.relu(self.d(x)).mean((2, 3)))))


class EfficientAttention(nn.Module):
    """ECA: a 1-D convolution slides over the channels' means; a learned gate a channel beside it."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 10)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.alpha = nn.Parameter(torch.rand(10) + 0.5)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = self.eca(x.mean((2, 3)).unsqueeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        x = self.b(x * gate.sigmoid().expand_as(x))
        return self.out((x * self.alpha.view(1, -1, 1, 1)).mean((2, 3)))


class UntilSettled(nn.Module):
    """Iterates a shared cell as often as its state asks for."""

    inputs = staticmethod(lambda: torch.randn(2, 6))

    def __init__(self) -> None:
        super().__init__()
        self.into, self.cell, self.norm = nn.Linear(6, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.halt, self.out = nn.Linear(8, 1), nn.Linear(8, 3)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.into(x))
        self.steps = 0
        while self.steps < 2 or (self.steps < 4 and float(self.halt(h).sum()) > 1e6):
            h = self.norm(h + torch.tanh(self.cell(h)))
            self.steps += 1
        return self.out(h)


class WritesIntoViews(nn.Module):
    """In-place operations on views: halves shifted and halved, rows overwritten, a buffer added."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(8, 1, 1))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).clone()
        first, second = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        first.add_(self.scale)
        second.sub_(first).mul_(0.5)
        x += self.shift
        y = self.b(x) * 2
        y[:, :, 0] = y[:, :, 1] + 1
        y[:, :, :, -1].zero_()
        return self.out(y.mean((2, 3)))


class Rolled(nn.Module):
    """Channels rolled by a fixed number, flipped, and squeezed out of space into channels and back."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.turned, self.b = conv(3, 8), conv(8, 8), conv(8, 6)
        self.down = nn.PixelUnshuffle(2)
        self.c = nn.Conv2d(24, 16, 1)
        self.up = nn.PixelShuffle(2)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.turned(torch.roll(self.a(x), (2, 1), (1, 2))).flip(1, 3))
        return self.out(self.up(F.relu(self.c(self.down(x)))))


class HeadParameters(nn.Module):
    """Attention whose heads have parameters of their own, by einsum, with a temperature and a gate a head."""

    inputs = staticmethod(lambda: torch.randn(2, 7, 8))

    def __init__(self, heads: int = 3, size: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(heads, 8, size) * 0.3) for _ in range(3))
        self.o = nn.Parameter(torch.randn(heads, size, 8) * 0.3)
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)
        self.gate = nn.Parameter(torch.rand(heads))
        self.norm = nn.LayerNorm(8)
        self.up, self.out = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (torch.einsum("bnc,hcd->bhnd", y, w) for w in (self.q, self.k, self.v))
        weights = (torch.einsum("bhnd,bhmd->bhnm", q, k) * self.temperature).softmax(-1)
        mixed = torch.einsum("bhnm,bhmd->bhnd", weights, v) * self.gate[:, None, None]
        return self.out(F.gelu(self.up(x + torch.einsum("bhnd,hdc->bnc", mixed, self.o))))


class ReadsAndRemembers(nn.Module):
    """Embeddings of words and places feed an LSTM in two directions, whose last states feed a cell."""

    inputs = staticmethod(lambda: torch.randint(0, 11, (2, 6)))

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8, padding_idx=0), nn.Embedding(9, 8)
        self.norm = nn.LayerNorm(8)
        self.lstm = nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.cell = nn.GRUCell(10, 7)
        self.out = nn.Linear(7 + 10, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.places(places))
        states, (last, _) = self.lstm(x)
        h = self.cell(torch.cat([last[-2], last[-1]], -1))
        return self.out(torch.cat([h, states.amax(1)], -1))


class SideChannel(nn.Module):
    """A class that keeps maps in its own attributes, a lambda, a partial, and a list of bound methods."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(8, 6)
        self.squash = lambda x: torch.where(x > 1, torch.ones_like(x), x)
        self.seen: dict[str, Tensor] = {}
        self.b.register_forward_hook(lambda module, args, made: made * 2 + args[0])
        self.c.register_forward_pre_hook(self.note)
        self.out = nn.Linear(14, 3)

    def note(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.seen["c"] = args[0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.squash(self.c(self.b(self.a(x))))
        return self.out(torch.cat([y.mean((2, 3)), self.seen.pop("c").amax((2, 3))], 1))


class WidthArithmetic(nn.Module):
    """Sizes halved, doubled and added in the forward pass, as numbers of the module and of tensors."""

    inputs = staticmethod(lambda: torch.randn(2, 5, 6))

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qk, self.v = nn.Linear(6, 2 * width), nn.Linear(6, width)
        self.o = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qk = self.qk(x)
        half = qk.shape[-1] // 2
        q, k = qk[..., :half], qk[..., half:]
        q, k, v = (y.reshape(b, n, self.heads, -1).transpose(1, 2) for y in (q, k, self.v(x)))
        weights = (q @ k.mT / (self.width // self.heads) ** 0.5).softmax(-1)
        return x + self.o((weights @ v).transpose(1, 2).reshape(b, n, self.width))


class Complexes(nn.Module):
    """Pairs of channels are complex numbers that a learned filter turns."""

    inputs = staticmethod(lambda: torch.randn(2, 3, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.turn = nn.Parameter(torch.randn(4, 2) * 0.3)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).mean((2, 3))
        z = torch.view_as_complex(x.view(x.shape[0], -1, 2).contiguous()) * torch.view_as_complex(self.turn)
        return self.out(torch.view_as_real(z).flatten(1))


MORE = [
    TiedAutoencoder, SlicedParameters, InterleavedGate, StridedJoin, ListsOfMaps, CrossStageSplits, ShuffledGroups,
    NormedWeights, EfficientAttention, UntilSettled, WritesIntoViews, Rolled, HeadParameters, ReadsAndRemembers,
    SideChannel, WidthArithmetic, Complexes,
]  # fmt: skip
