"""Solve the width problem of well-known networks' shapes and print gap, latency and time.

The latencies are synthetic (a staircase of 16 channels whose height follows the multiply-accumulates,
with some widths slower than wider ones), so this needs no profile and no network: it exercises the
solvers, it says nothing about a device.

    python tools/bench_solver.py [--steps 1 8] [--targets 0.2 0.3 0.55 0.8] [--solvers joint halp] [--only NAME]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import numpy as np

from halp_iee.errors import TargetError
from halp_iee.graph.records import Width
from halp_iee.solve import floor_ms, solve


@dataclass(frozen=True)
class StaircaseLayer:
    name: str
    c_in: Width
    c_out: Width
    kernel: int
    side: int
    depthwise: bool = False

    def ms(self, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        rows, columns = 16 * np.ceil(c_in / 16), 16 * np.ceil(c_out / 16)
        work = self.kernel**2 * self.side**2 * columns * (1.0 if self.depthwise else rows)
        slow = 1.0 + 0.15 * ((np.asarray(c_out) // 16) % 4 == 3)
        return (
            0.0005 + 2.5e-8 * work * slow + 1e-7 * self.side**2 * (np.asarray(c_in) + np.asarray(c_out)) / 16
        )


@dataclass
class Shape:
    """A network under construction; also the cost model that the solver takes."""

    sizes: dict[str, int] = field(default_factory=dict)
    layers: list[StaircaseLayer] = field(default_factory=list)
    fixed_ms: float = 0.01

    def group(self, name: str, size: int) -> str:
        self.sizes[name] = size
        return name

    def width(self, *groups: str) -> Width:
        return Width(tuple((name, self.sizes[name], 1) for name in groups))

    def conv(self, source: tuple[str, ...], to: str, kernel: int, side: int, depthwise: bool = False) -> None:
        c_in = self.width(*source) if source else Width((), 3)
        name = f"{len(self.layers)}"
        self.layers.append(StaircaseLayer(name, c_in, self.width(to), kernel, side, depthwise))

    def head(self, source: tuple[str, ...]) -> None:
        self.layers.append(StaircaseLayer("head", self.width(*source), Width((), 1000), 1, 1))

    def predict(self, widths: dict[str, int]) -> float:
        return self.fixed_ms + sum(
            float(layer.ms(np.array([layer.c_in(widths)]), np.array([layer.c_out(widths)]))[0])
            for layer in self.layers
        )


def resnet(blocks: tuple[int, ...]) -> Shape:
    net = Shape()
    before = net.group("stem", 64)
    net.conv((), before, 7, 112)
    for stage, (count, planes, side) in enumerate(
        zip(blocks, (64, 128, 256, 512), (56, 28, 14, 7), strict=True)
    ):
        residual = net.group(f"s{stage}", 4 * planes)
        for block in range(count):
            source = before if block == 0 else residual
            a, b = (net.group(f"s{stage}.{block}.{part}", planes) for part in "ab")
            net.conv((source,), a, 1, side)
            net.conv((a,), b, 3, side)
            net.conv((b,), residual, 1, side)
            if block == 0:
                net.conv((source,), residual, 1, side)
        before = residual
    net.head((before,))
    return net


def resnet20() -> Shape:
    net = Shape()
    before = net.group("stem", 16)
    net.conv((), before, 3, 32)
    for stage, (planes, side) in enumerate(((16, 32), (32, 16), (64, 8))):
        residual = before if stage == 0 else net.group(f"s{stage}", planes)
        for block in range(3):
            source = before if block == 0 else residual
            a = net.group(f"s{stage}.{block}", planes)
            net.conv((source,), a, 3, side)
            net.conv((a,), residual, 3, side)
        before = residual
    net.head((before,))
    return net


def mobilenet_v2() -> Shape:
    net = Shape()
    before, side = net.group("stem", 32), 112
    net.conv((), before, 3, side)
    plan = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    full = 32
    for stage, (expand, planes, count, stride) in enumerate(plan):
        residual = net.group(f"s{stage}", planes)
        for block in range(count):
            source = before if block == 0 else residual
            inner = source
            if expand > 1:
                inner = net.group(f"s{stage}.{block}", full * expand)
                net.conv((source,), inner, 1, side)
            side = side // stride if block == 0 else side
            net.conv((inner,), inner, 3, side, depthwise=True)
            net.conv((inner,), residual, 1, side)
            full = planes
        before = residual
    last = net.group("last", 1280)
    net.conv((before,), last, 1, side)
    net.head((last,))
    return net


def densenet121() -> Shape:
    net = Shape()
    parts: tuple[str, ...] = (net.group("stem", 64),)
    net.conv((), "stem", 7, 112)
    full = 64
    for stage, (count, side) in enumerate(zip((6, 12, 24, 16), (56, 28, 14, 7), strict=True)):
        for block in range(count):
            a, b = net.group(f"s{stage}.{block}.a", 128), net.group(f"s{stage}.{block}.b", 32)
            net.conv(parts, a, 1, side)
            net.conv((a,), b, 3, side)
            parts = (*parts, b)
            full += 32
        if stage < 3:
            full //= 2
            between = net.group(f"t{stage}", full)
            net.conv(parts, between, 1, side)
            parts = (between,)
    net.head(parts)
    return net


def googlenet() -> Shape:
    net = Shape()
    net.conv((), net.group("c1", 64), 7, 112)
    net.conv(("c1",), net.group("c2", 64), 1, 56)
    net.conv(("c2",), net.group("c3", 192), 3, 56)
    parts: tuple[str, ...] = ("c3",)
    plan = (
        (28, 64, 96, 128, 16, 32, 32), (28, 128, 128, 192, 32, 96, 64), (14, 192, 96, 208, 16, 48, 64),
        (14, 160, 112, 224, 24, 64, 64), (14, 128, 128, 256, 24, 64, 64), (14, 112, 144, 288, 32, 64, 64),
        (14, 256, 160, 320, 32, 128, 128), (7, 256, 160, 320, 32, 128, 128), (7, 384, 192, 384, 48, 128, 128),
    )  # fmt: skip
    for i, (side, *planes) in enumerate(plan):
        names = [net.group(f"i{i}.{part}", size) for part, size in zip("abcdef", planes, strict=True)]
        one, reduce3, three, reduce5, five, pool = names
        net.conv(parts, one, 1, side)
        net.conv(parts, reduce3, 1, side)
        net.conv((reduce3,), three, 3, side)
        net.conv(parts, reduce5, 1, side)
        net.conv((reduce5,), five, 3, side)
        net.conv(parts, pool, 1, side)
        parts = (one, three, five, pool)
    net.head(parts)
    return net


NETWORKS = {
    "resnet20": resnet20,
    "resnet50": lambda: resnet((3, 4, 6, 3)),
    "resnet152": lambda: resnet((3, 8, 36, 3)),
    "mobilenet_v2": mobilenet_v2,
    "googlenet": googlenet,
    "densenet121": densenet121,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.2, 0.3, 0.55, 0.8])
    parser.add_argument("--solvers", nargs="+", default=["joint", "halp"])
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    print("network        groups step target  solver         value    gap %  of dense       s")
    for name in options.only:
        net = NETWORKS[name]()
        rng = np.random.default_rng(0)
        scores = {group: rng.gamma(0.5, rng.uniform(0.2, 2.0), size) for group, size in net.sizes.items()}
        dense_ms = net.predict(net.sizes)
        for step in options.steps:
            print(
                f"{name:14}{len(net.sizes):>7}{step:>5}  floor {floor_ms(net, scores, steps=step) / dense_ms:.4f}"
            )
            for target in options.targets:
                for solver in options.solvers:
                    try:
                        answer = solve(net, scores, target * dense_ms, solver, steps=step)
                    except TargetError as error:
                        print(f"{name:14}{len(net.sizes):>7}{step:>5}{target:>7}  {solver:8}{error.why}")
                        continue
                    print(
                        f"{name:14}{len(net.sizes):>7}{step:>5}{target:>7}  {solver:8}{answer.value:>12.3f}"
                        f"{100 * answer.gap:>9.4f}{answer.latency_ms / dense_ms:>10.5f}{answer.seconds:>8.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
