"""The same network with multiply-accumulates in the place of milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halp_iee.graph.records import Width
from halp_profiler.kernel import Kernel


@dataclass(frozen=True)
class MacLayer:
    """One layer's MACs an image, in millions, behind the interface of a layer's latency.

    One MAC for each weight at each output position (for a transposed convolution, each input position).
    """

    name: str
    c_in: Width
    c_out: Width
    kernel: Kernel

    def ms(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray:
        k = self.kernel
        a, b = np.asarray(c_in, dtype=np.float64), np.asarray(c_out, dtype=np.float64)
        if k.op in ("linear", "matmul"):
            return math.prod(k.spatial) * a * b * 1e-6
        if k.op not in ("conv", "conv_transpose"):
            return np.zeros(np.broadcast_shapes(a.shape, b.shape))
        fan_in = a if k.group_width is None else np.full_like(a, k.group_width)
        if k.group_width is not None:
            b = np.broadcast_to(a // k.group_width * (k.group_out or 1), np.broadcast_shapes(a.shape, b.shape))
        return math.prod(self._positions()) * math.prod(k.kernel_size) * fan_in * b * (k.groups or 1) * 1e-6

    def _positions(self) -> tuple[int, ...]:
        k = self.kernel
        if k.op == "conv_transpose":
            return k.spatial
        dilation = k.dilation or (1,) * len(k.kernel_size)
        return tuple(
            (size + 2 * pad - d * (window - 1) - 1) // stride + 1
            for size, pad, d, window, stride in zip(
                k.spatial, k.padding, dilation, k.kernel_size, k.stride, strict=True
            )
        )


class MacCost:
    """A cost model of MACs, in millions an image, for the layers of a latency model."""

    def __init__(self, cost: Any) -> None:
        self.layers = tuple(MacLayer(la.name, la.c_in, la.c_out, la.kernel) for la in cost.layers)
        self.fixed_ms = 0.0

    def predict(self, widths: Mapping[str, int]) -> float:
        return sum(float(la.ms(la.c_in(widths), la.c_out(widths))) for la in self.layers)
