"""A network and a data set small enough to train in a blink."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from halp_iee.train.records import Data
from halp_iee.train.tensors import TensorSplit


class TinyNet(nn.Module):
    """Draws from the global generator (dropout) and has statistics (BatchNorm), so that both count."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


@pytest.fixture
def tiny_net():
    def build(seed: int = 0, **options: int) -> TinyNet:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TinyNet(**options)

    return build


@pytest.fixture
def tiny_data() -> Data:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(44) % 3
    images = torch.randn(44, 1, 8, 8, generator=generator) + labels[:, None, None, None]
    return Data(
        name="tiny",
        classes=("a", "b", "c"),
        input_shape=(1, 8, 8),
        train=TensorSplit(images[:33], labels[:33], augmentation="crop-flip"),
        test=TensorSplit(images[33:], labels[33:]),
    )
