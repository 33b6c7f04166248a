"""What a network costs when residual branches may be removed whole: a width of 0 for all groups of a branch.

A branch's layers cost nothing where its groups have no units, and a network that keeps some of its groups and not
others does not exist, which is said by a latency that no budget holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halp_iee.graph.records import Width

_NEVER = 1e3
"""The latency of what does not exist, in dense latencies: finite, so that differences of it are numbers."""


@dataclass(frozen=True, eq=False)
class Gated:
    """A layer of a branch: its latency, or nothing where an axis that lies in the branch has no channels.

    Attributes:
        of: the layer itself.
        gate_in, gate_out: whether that axis lies in the branch.
        through: whether the layer passes its channels through, and ``c_out`` says how many units the branch has.
    """

    name: str
    c_in: Width
    c_out: Width
    of: Any
    gate_in: bool
    gate_out: bool
    through: bool = False

    @property
    def kernel(self) -> Any:
        return self.of.kernel

    @property
    def dense_ms(self) -> float:
        return float(self.of.dense_ms)

    def ms(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray:
        """Latency in ms at these channels, which broadcast."""
        rows, columns = np.asarray(c_in), np.asarray(c_out)
        gone = np.zeros(np.broadcast_shapes(rows.shape, columns.shape), dtype=bool)
        gone = gone | ((rows == self.c_in.fixed) & self.gate_in) | ((columns == self.c_out.fixed) & self.gate_out)
        rows = np.where((rows == self.c_in.fixed) & self.gate_in, self.c_in.full, rows)
        if self.through:
            latency_ms = self.of.ms(rows, rows + (self.of.c_out.fixed - self.of.c_in.fixed))
        else:
            columns = np.where((columns == self.c_out.fixed) & self.gate_out, self.c_out.full, columns)
            latency_ms = self.of.ms(rows, columns)
        return np.where(gone, 0.0, np.broadcast_to(latency_ms, gone.shape))


@dataclass(frozen=True, eq=False)
class Together:
    """No latency where two groups of a branch both have units or both have none; else one that no budget holds."""

    name: str
    c_in: Width
    c_out: Width
    never_ms: float
    kernel: Any = None
    dense_ms: float = 0.0

    def ms(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray:
        """Latency in ms at these units, which broadcast."""
        return np.where((np.asarray(c_in) == 0) != (np.asarray(c_out) == 0), self.never_ms, 0.0)


class WithBranches:
    """A cost model in which the groups of removable branches may have no units.

    Args:
        cost: the model of the whole network.
        branches: each with ``module``, ``stays`` and ``groups`` (``halp_iee.graph.branches.Branch``).

    Attributes:
        branches: the groups of each branch.
        layers, fixed_ms: as of the model; layers of a branch cost nothing without it. An activation that stays is
            taken to cost nothing beside the addition that goes.
    """

    def __init__(self, cost: Any, branches: Sequence[Any]) -> None:
        self._cost = cost
        self.fixed_ms = float(cost.fixed_ms)
        self.branches: tuple[tuple[str, ...], ...] = tuple(branch.groups for branch in branches)
        sizes = {name: size for layer in cost.layers for axis in (layer.c_in, layer.c_out)
                 for name, size, _ in axis.terms}  # fmt: skip
        sizes |= {group.name: group.size for group in getattr(getattr(cost, "graph", None), "groups", ())}
        self.layers = tuple(_gated(layer, branches, sizes) for layer in cost.layers) + tuple(
            Together(
                f"{branch.module}: together", _units(branch.groups[0], sizes), _units(other, sizes),
                _NEVER * float(cost.predict({})),
            )
            for branch in branches
            for other in branch.groups[1:]
        )  # fmt: skip

    def predict(self, widths: Mapping[str, int]) -> float:
        """Latency in ms; groups that are not named are whole."""
        return self.fixed_ms + sum(float(c.ms(c.c_in(widths), c.c_out(widths))) for c in self.layers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cost, name)


def _units(name: str, sizes: Mapping[str, int]) -> Width:
    return Width(((name, sizes[name], 1),), 0)


def _gated(layer: Any, branches: Sequence[Any], sizes: Mapping[str, int]) -> Any:
    for branch in branches:
        inner = set(branch.groups)
        stands = layer.name.partition(":")[0].partition("#")[0]
        if stands != branch.module and not stands.startswith(branch.module + "."):
            continue
        if branch.stays and stands == f"{branch.module}.{branch.stays}":
            return layer
        gate_in, gate_out = (bool(axis.terms) and inner.issuperset(axis.groups) for axis in (layer.c_in, layer.c_out))
        if gate_in or gate_out:
            return Gated(layer.name, layer.c_in, layer.c_out, layer, gate_in, gate_out)
        if layer.c_in.terms == layer.c_out.terms:
            # Beside the branch, as its addition is: gone with it, and as wide as what passes it by.
            return Gated(layer.name, layer.c_in, _units(branch.groups[0], sizes), layer, False, True, through=True)
    return layer
