"""From a table and a graph to the latency of a network at any widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from halp_iee.latency.calibration import Calibration, fitted
from halp_iee.latency.cost import LayerCost
from halp_iee.latency.layers import Traced, Unmodelled, unmodelled_of
from halp_iee.latency.table import LatencyTable
from halp_iee.latency.terms import terms_of
from halp_profiler.errors import TableError, UsageError
from halp_profiler.kernel import Kernel

_KNOWN = 1000
"""Predictions that are kept."""


@dataclass(frozen=True)
class LayerReport:
    """One line of ``LatencyModel.describe``."""

    name: str
    kernel: str
    c_in: int
    c_out: int
    dense_ms: float
    share: float


class LatencyModel:
    """T(widths) = fixed_ms + sum over layers of T^l(c_in(widths), c_out(widths)), in ms per call.

    Fewer channels can be slower, and then they are so here too.

    Args:
        graph: the traced network.
        table: latencies of its kernels.

    Attributes:
        graph: the traced network, whose groups can be solved for, those that cost nothing included.
        layers: one LayerCost a kernel that the table knows.
        fixed_ms: what a call costs whatever the widths; 0 before calibration.
        missing: kernels that are not in the table and are left to calibration (copies, pools, ...).
        unmodelled: operations without a kernel, with the reason, likewise left to calibration.
        calibration: the fit, or None.

    Raises:
        TableError: the table lacks one of the network's convolutions or matrix products, or does not cover its width.
    """

    def __init__(self, graph: Traced, table: LatencyTable) -> None:
        costs, missing = terms_of(graph, table)
        if not costs:
            raise TableError(
                "The network's latency cannot be predicted",
                "none of its operations has a kernel" if not missing else "the table knows none of its kernels",
                "Profile it with `halp-iee profile`",
            )
        self.graph = graph
        self.layers: tuple[LayerCost, ...] = tuple(costs)
        self.missing: tuple[Kernel, ...] = tuple(dict.fromkeys(missing))
        self.unmodelled: tuple[Unmodelled, ...] = unmodelled_of(graph)
        self.table = table
        self.fixed_ms = 0.0
        self.calibration: Calibration | None = None
        self._known: dict[tuple[int, ...], float] = {}

    @property
    def source(self) -> str:
        """``measured`` or ``modelled``: what the table is. What ``predict`` says is predicted from it."""
        return self.table.source

    @property
    def dense_ms(self) -> float:
        """Predicted latency with every group whole."""
        return self.predict({})

    def predict(self, widths: Mapping[str, int]) -> float:
        """Predicted latency in ms at the groups' ``widths`` (name -> units); a group not named is whole.

        Raises:
            TableError: a width outside of what the table covers.
        """
        key = tuple(widths.get(group.name, group.size) for group in self.graph.groups)
        if key not in self._known:  # a solver, what checks it and what reports it ask for the same widths
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[key] = sum(float(c.ms(c.c_in(widths), c.c_out(widths))) for c in self.layers)
        return self.fixed_ms + self._known[key]

    def calibrate(self, points: Sequence[tuple[Mapping[str, int], float]]) -> LatencyModel:
        """Fits scale and offset to whole networks; see ``halp_iee.latency.calibration.fitted``.

        Args:
            points: (widths, measured ms) of networks that were built and timed in the runtime.

        Returns:
            A new model; this one stays as it is, and an earlier calibration is not built upon.

        Raises:
            UsageError: no points, or a latency that is not above 0.
        """
        measured = np.array([float(ms) for _, ms in points])
        if not len(measured) or not np.all(np.isfinite(measured) & (measured > 0)):
            raise UsageError(
                "The latency model cannot be calibrated",
                "there are no points" if not len(measured) else "a measured latency is not a number above 0",
                "Measure at least the dense network",
            )
        raw = self._with(1.0, 0.0)
        predicted = np.array([raw.predict(widths) for widths, _ in points])
        scale, offset = fitted(predicted, measured)
        model = self._with(scale, offset)
        residuals = np.array([model.predict(widths) for widths, _ in points]) / measured - 1
        model.calibration = Calibration(
            scale, offset, tuple(predicted.tolist()), tuple(measured.tolist()), tuple(residuals.tolist())
        )
        return model

    def describe(self) -> tuple[LayerReport, ...]:
        """Every layer's kernel, dense widths, dense latency in ms and share of the network's, in execution order."""
        dense = self.dense_ms
        return tuple(
            LayerReport(
                c.name,
                c.kernel.key,
                c.kernel.of_tensor(c.c_in.full),
                c.kernel.of_tensor(c.c_out.full),
                c.dense_ms,
                c.dense_ms / dense if dense else 0.0,
            )
            for c in self.layers
        )

    def _with(self, scale: float, offset_ms: float) -> LatencyModel:
        other = object.__new__(LatencyModel)
        other.layers = tuple(replace(c, scale=scale) for c in self.layers)
        other.graph = self.graph
        other.missing, other.unmodelled, other.table = self.missing, self.unmodelled, self.table
        other.fixed_ms, other.calibration, other._known = offset_ms, None, {}
        return other
