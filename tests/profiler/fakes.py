"""A device whose latencies are known exactly, so that what is made of its measurements can be judged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from halp_profiler.backends.base import Request
from halp_profiler.kernel import Kernel
from halp_profiler.records import Header, Point
from halp_profiler.steps import Steps

CONV = Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1), fused=("relu",))
DEPTHWISE = Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1), group_width=1, group_out=1)
LINEAR = Kernel("linear")


def header(**changes: object) -> Header:
    values: dict = {
        "device": {"name": "Test CPU", "kind": "cpu", "threads": 1}, "backend": "fake", "backend_version": "1",
        "precision": "fp32", "layout": "nchw", "batch": 1, "source": "measured",
        "how": {"steps": {"conv": Steps(4, 16, 16, 16).to_json(), "depthwise": Steps(4, 16, 16).to_json()}},
    }  # fmt: skip
    return Header(**{**values, **changes})


def point(kernel: Kernel, c_in: int, c_out: int, ms: float, *flags: str) -> Point:
    return Point(kernel, c_in, c_out, ms, ms, ms, 9, flags)


def staircase_ms(kernel: Kernel, c_in: int, c_out: int) -> float:
    """Blocks of 16 on both axes for input widths that are multiples of 4; a slow path without blocks for others."""

    def up(c: int) -> int:
        return -(-c // 16) * 16

    if kernel.op == "linear":
        return 0.001 + 1e-6 * c_in * c_out
    if kernel.diagonal:
        return 0.002 + 1e-4 * (up(c_in) if c_in % 4 == 0 else 3 * c_in)
    if c_in < 16:
        return 0.002 + 1e-5 * c_in * up(c_out)
    if c_in % 4 == 0:
        return 0.002 + 1e-5 * up(c_in) * up(c_out)
    return 0.004 + 3e-5 * c_in * c_out


@dataclass
class FakeBackend:
    """Answers from ``staircase_ms`` and counts what it was asked."""

    together: int = 4
    asked: list[Request] = field(default_factory=list)
    refused: tuple[Kernel, ...] = ()

    def header(self) -> Header:
        return header()

    def steps(self, kernel: Kernel) -> Steps:
        return self.header().steps(kernel)

    def refusal(self, kernel: Kernel) -> str | None:
        return "the fake does not want it" if kernel in self.refused else None

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        self.asked += requests
        return [point(r.kernel, r.c_in, r.c_out, staircase_ms(r.kernel, r.c_in, r.c_out)) for r in requests]


@dataclass
class Lottery(FakeBackend):
    """One reading in ``1 / share`` is off by ``off``, whatever else is steady about it."""

    share: float = 0.1
    off: tuple[float, ...] = (1.5, 0.7)
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        def drawn() -> float:
            return self._rng.choice(self.off) if self._rng.random() < self.share else 1.0

        return [point(p.kernel, p.c_in, p.c_out, p.median_ms * drawn()) for p in super().measure(requests)]
