"""Small networks and a training loop that the tests of the sparse methods share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halp_iee.graph import trace
from halp_iee.methods.sparse import METHODS, SparseMethod

STEPS = 24


class Net(nn.Module):
    """A stem, a residual block and two linear layers; every inner size a multiple of four."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc1 = nn.Linear(width, 16)
        self.fc2 = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    y = torch.randint(0, 4, (8,), generator=generator)
    return torch.randn(8, 3, 5, 5, generator=generator) + y.reshape(-1, 1, 1, 1), y


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-3, amsgrad=True)
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


# What every method is tried with: a name, the method, its settings.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {"sparsity": 0.8}),
    "static 2:4": ("static", {"pattern": "2:4"}),
    "static fan-in": ("static", {"pattern": "fan-in", "sparsity": 0.7}),
    "snip": ("snip", {"sparsity": 0.8}),
    "snip erk": ("snip", {"sparsity": 0.8, "distribution": "erk"}),
    "gmp": ("gmp", {"sparsity": 0.8, "every": 3}),
    "gmp global": ("gmp", {"sparsity": 0.8, "every": 3, "distribution": "global"}),
    "gmp channel": ("gmp", {"sparsity": 0.5, "every": 3, "pattern": "channel", "exclude": ("fc2",)}),
    "gmp given": ("gmp", {"every": 3, "distribution": {"conv1": 0.75, "fc1": 0.5}}),
    "set": ("set", {"sparsity": 0.8, "every": 3}),
    "set uniform": ("set", {"sparsity": 0.8, "every": 3, "distribution": "uniform"}),
    "set 4x1": ("set", {"sparsity": 0.75, "every": 3, "pattern": "4x1"}),
    "set given": ("set", {"every": 3, "distribution": {"conv1": 0.5, "fc1": 0.25}, "schedule": "constant"}),
    "rigl": ("rigl", {"sparsity": 0.8, "every": 3}),
    "rigl 2 batches": ("rigl", {"sparsity": 0.8, "every": 3, "gradient_batches": 2}),
    "rigl global": ("rigl", {"sparsity": 0.9, "every": 3, "distribution": "global"}),
    "rigl 2:4": ("rigl", {"every": 3, "pattern": "2:4"}),
    "rigl 1:4": ("rigl", {"every": 3, "pattern": "1:4"}),
    "rigl fan-in": ("rigl", {"every": 3, "pattern": "fan-in", "sparsity": 0.75}),
    "set channel": ("set", {"every": 3, "pattern": "channel", "sparsity": 0.5, "exclude": ("fc2",)}),
    "rigl kernel": (
        "rigl",
        {"every": 3, "pattern": "kernel", "sparsity": 0.7, "kinds": ("conv",), "distribution": "uniform"},
    ),
    "iee erk": ("iee", {"sparsity": 0.8, "H": 2, "J": 1, "Q": 2}),
    "iee uniform": ("iee", {"sparsity": 0.8, "H": 1, "J": 1, "Q": 2, "distribution": "uniform"}),
    "iee global": ("iee", {"sparsity": 0.8, "H": 1, "J": 1, "Q": 2, "distribution": "global"}),
    "iee 2:4": ("iee", {"pattern": "2:4", "H": 1, "J": 1, "Q": 2}),
    "iee Q=0": ("iee", {"sparsity": 0.8, "H": 3, "J": 1, "Q": 0}),
    "iee zero": ("iee", {"sparsity": 0.8, "H": 1, "J": 1, "Q": 2, "reactivate": "zero"}),
    "iee initial": ("iee", {"sparsity": 0.8, "H": 2, "J": 1, "Q": 2, "unused": "initial"}),
    "iee random": ("iee", {"sparsity": 0.8, "H": 1, "J": 1, "Q": 2, "grow": "random"}),
    "srigl": ("srigl", {"sparsity": 0.8, "every": 3}),
    "srigl ablating": ("srigl", {"sparsity": 0.85, "every": 3, "gamma": 0.95, "distribution": "uniform"}),
    "srigl gamma 0": ("srigl", {"sparsity": 0.8, "every": 3, "gamma": 0.0}),
    "mest plain": ("mest", {"sparsity": 0.8, "every": 3, "variant": "plain"}),
    "mest em": ("mest", {"sparsity": 0.8, "every": 3, "variant": "em"}),
    "mest em&s": ("mest", {"sparsity": 0.8, "every": 3}),
    "mest given": ("mest", {"every": 3, "distribution": {"conv1": 0.75, "conv2": 0.5}}),
    "mest em&s 4x1": ("mest", {"sparsity": 0.75, "every": 3, "pattern": "4x1"}),
    "mest em&s kernel": ("mest", {"sparsity": 0.8, "every": 3, "pattern": "kernel"}),
    "mest em&s global": ("mest", {"sparsity": 0.8, "every": 3, "distribution": "global"}),
    "chase": ("chase", {"sparsity": 0.8, "every": 3}),
    "chase channels": ("chase", {"sparsity": 0.85, "every": 3, "channel_sparsity": 0.4}),
    "chase skip": (
        "chase", {"sparsity": 0.9, "every": 3, "channel_every": 3, "channel_sparsity": 0.4, "prune_skip": True}
    ),
}  # fmt: skip


def start(
    case: str, optimizer: str = "sgd", seed: int = 0, **more: Any
) -> tuple[nn.Module, torch.optim.Optimizer, SparseMethod]:
    """A network, its optimizer and the method of a case around them."""
    torch.manual_seed(seed)
    model = Net()
    opt = optimizer_of(optimizer, model)
    name, settings = CASES[case]
    extra = {"graph": trace(Net(), torch.zeros(2, 3, 6, 6))} if "channel_sparsity" in settings else {}
    return model, opt, METHODS[name](model, opt, steps=STEPS, **{**settings, **extra, **more})


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, method: SparseMethod, step: int) -> None:
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    method.step()


def linear(rows: int = 6, columns: int = 10) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(columns, rows))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def backward(model: nn.Module, seed: int = 0) -> None:
    torch.manual_seed(seed)
    model.zero_grad()
    model(torch.randn(8, 10)).square().mean().backward()
