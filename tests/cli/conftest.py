"""A network small enough to go through the whole job in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

NETWORK = '''
"""A network as a stranger might bring it."""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(in_channels, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.b = nn.Sequential(
            nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.Conv2d(24, 32, 1), nn.BatchNorm2d(32), nn.SiLU()
        )
        self.c = nn.Conv2d(56, 48, 3, 2, 1)
        self.head = nn.Linear(48, num_classes)

    def forward(self, x):
        x = self.a(x)
        x = torch.relu(self.c(torch.cat([x, self.b(x)], 1)))
        return self.head(x.mean((2, 3)))


def build(num_classes=10, in_channels=1):
    return Net(num_classes, in_channels)


def talks(num_classes=10, in_channels=1):
    class Talking(Net):
        def forward(self, x):
            print("in forward")
            return super().forward(x)

    print("in the builder")
    return Talking(num_classes, in_channels)


def with_auxiliary_head(num_classes=10, in_channels=1):
    class Auxiliary(Net):
        def __init__(self):
            super().__init__(num_classes, in_channels)
            self.helper = nn.Linear(24, num_classes)

        def forward(self, x):
            if self.training:  # for a loss that the person's own loop would add
                self.helped = self.helper(self.a(x).mean((2, 3)))
            return super().forward(x)

    return Auxiliary()


def nothing_to_prune(num_classes=10, in_channels=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 1024, num_classes))


def fails():
    raise RuntimeError("no such luck")


def wrong():
    return 7
'''


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`path/to/file.py:function`; tables that are made go to this test's own folder."""
    path = tmp_path / "stranger.py"
    path.write_text(NETWORK)
    monkeypatch.setenv("HALP_LATENCY_TABLES", str(tmp_path / "tables"))
    monkeypatch.chdir(tmp_path)
    return f"{path}:build"
