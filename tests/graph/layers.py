"""Small networks around one layer that is not an ordinary convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.base import Net, conv


class Transposed(Net):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.up, self.groups = (
            nn.ConvTranspose2d(8, 12, 2, stride=2),
            nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4),
        )

    def body(self, x: Tensor) -> Tensor:
        return self.groups(F.relu(self.up(x)))


class Parametric(Net):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.one, self.a = nn.PReLU(8, 0.1), nn.PReLU(), nn.Conv2d(8, 8, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        return self.each(self.a(self.one(x - 0.5)))


class GroupNormed(Net):
    def __init__(self) -> None:
        super().__init__(12, 12)
        self.a, self.n = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.i = nn.InstanceNorm2d(12, affine=True)

    def body(self, x: Tensor) -> Tensor:
        return self.i(F.gelu(self.n(self.a(x))))


class ChannelAttention(Net):
    """A convolution that slides over the channels, and a maximum over them."""

    def __init__(self) -> None:
        super().__init__()
        self.slide = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.a, self.b = conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        s = self.slide(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1)
        x = self.a(x * s)
        return self.b(x * x.amax(1, keepdim=True))


class PixelShuffled(Net):
    def __init__(self) -> None:
        super().__init__(8, 6)
        self.a, self.b = nn.Conv2d(8, 24, 1), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.b(F.pixel_shuffle(self.a(x), 2))


class Normalised(Net):
    """Channels divided by their norm over the channels, and by their own spatial norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = F.normalize(self.a(x), dim=1)
        return self.b(x / (1 + x.norm(dim=(2, 3), keepdim=True)))


class UnknownOperation(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(8, 8), conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        y = torch.linalg.qr(self.b(x))[0]
        return self.c(self.a(x)) + y


class Volumes(nn.Module):
    inputs = staticmethod(lambda: (torch.randn(2, 3, 4, 6, 6), torch.randn(2, 3, 12)))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 6, 1)
        self.c, self.m, self.d = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        one = self.b(F.relu(self.n(self.a(x)))).mean((2, 3, 4))
        two = F.adaptive_max_pool1d(self.d(F.leaky_relu(self.m(self.c(y)))), 1).squeeze(-1)
        return self.head(torch.stack([one, two]).sum(0))


class WeightNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.b = nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class UpAndDown(Net):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.up, self.last = conv(8, 12), nn.ConvTranspose2d(12, 6, 2, stride=2), conv(14, 8)

    def body(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.up(self.low(F.max_pool2d(x, 2))), size=x.shape[-2:])
        return self.last(torch.cat([x, y], 1))


class Standardised(Net):
    """A convolution whose weight is normalised over its inputs: fewer inputs are other statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)

    def body(self, x: Tensor) -> Tensor:
        flat = self.a.weight.reshape(1, 8, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain, training=True).reshape_as(self.a.weight)
        return F.conv2d(x, weight, self.a.bias, padding=1)
