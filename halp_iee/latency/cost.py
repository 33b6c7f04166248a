"""What one layer of a network costs, at any width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from halp_iee.graph.records import Width
from halp_profiler.kernel import Kernel


class Latency(Protocol):
    """Latency in ms over channels in and out, which broadcast."""

    def __call__(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray: ...


@dataclass(frozen=True)
class LayerCost:
    """T^l(c_in, c_out) of one layer, in ms per call.

    Attributes:
        name: the layer's qualified name; ``name#2`` where a module runs twice.
        c_in, c_out: channels on its input and output as functions of the groups' widths.
        kernel: what runs.
        surface: its latency as the table has it.
        scale: by which calibration against whole networks multiplies it.
    """

    name: str
    c_in: Width
    c_out: Width
    kernel: Kernel
    surface: Latency
    scale: float = 1.0

    def ms(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray:
        """Latency in ms at ``c_in`` and ``c_out`` channels, which broadcast.

        Where a layer passes its channels through (depthwise, pooling, element by element), ``c_out`` only
        takes part in the broadcasting.

        Raises:
            TableError: a width outside of what the table covers.
        """
        return self.scale * self.surface(c_in, c_out)

    @property
    def dense_ms(self) -> float:
        """Latency with every group whole."""
        return float(self.ms(self.c_in.full, self.c_out.full))
