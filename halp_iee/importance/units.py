"""From scores of positions along parameter axes to scores of units.

A score is first found for every position of an axis of some parameter (a channel of a BatchNorm, a
filter of a convolution); the channel graph says which unit of which group that position belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph

Scores = dict[str, Tensor]
"""Group name -> one float64 score a unit, on the CPU; prunable groups only."""

Tensors = Mapping[str, Tensor]
"""Qualified name of a parameter -> its values, or its gradient."""

Positions = Mapping[str, tuple[np.ndarray | None, ...]]
"""Name -> for every axis the full-size positions that a slim tensor holds; None: the axis is whole."""

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass
class UnitSums:
    """Adds up scores of positions into scores of units.

    Args:
        graph: says which unit each position of each axis belongs to.
        positions: which full-size positions the tensors hold; None: they are full-size.
    """

    graph: ChannelGraph
    positions: Positions | None = None
    _ids: list[np.ndarray] = field(default_factory=list)
    _scores: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        sizes = [group.size for group in self.graph.groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    def ids(self, name: str, axis: int) -> np.ndarray | None:
        """For each position that the tensor holds, the number of its unit over all groups, or -1.

        None when the axis carries no units.
        """
        axes = self.graph.axes.get(name)
        units = None if axes is None or axis >= len(axes) else axes[axis]
        if units is None:
            return None
        group, unit = np.asarray(units.group), np.asarray(units.unit)
        if self.positions is not None and name in self.positions:
            held = self.positions[name][axis]
            if held is not None:
                group, unit = group[held], unit[held]
        return np.where(group >= 0, self._starts[group] + unit, -1)

    def add(self, ids: np.ndarray, scores: Tensor) -> None:
        """Add `scores` [n] to the units `ids` [n]; -1 goes nowhere."""
        assert ids.shape == scores.shape, "one score a position"
        self._ids.append(ids)
        self._scores.append(scores.detach().double())

    def total(self) -> Scores:
        """The sums. Units that the tensors do not hold have 0."""
        flat = torch.zeros(int(self._starts[-1]) + 1, dtype=torch.float64)
        if self._ids:
            # The last place takes what belongs to no unit: numpy's and torch's -1.
            ids = np.concatenate(self._ids)
            scores = torch.cat([s.to(self._scores[0].device) for s in self._scores]).cpu()
            flat.index_add_(0, torch.from_numpy(np.where(ids < 0, len(flat) - 1, ids)), scores)
        return {
            group.name: flat[start : start + group.size].clone()
            for group, start in zip(self.graph.groups, self._starts, strict=False)
            if group.prunable
        }


def norms(graph: ChannelGraph) -> Iterator[str]:
    """Names of the normalisation layers that scale each channel by a parameter of its own."""
    for name, module in graph.model.named_modules():
        if isinstance(module, NORMS) and getattr(module, "weight", None) is not None:
            yield name


def groups_with_norm(graph: ChannelGraph) -> frozenset[str]:
    """The groups of which some channel passes through a layer of `norms`."""
    found: set[int] = set()
    for name in norms(graph):
        axes = graph.axes.get(f"{name}.weight")
        if axes and axes[0] is not None:
            found.update(np.unique(axes[0].group).tolist())
    return frozenset(graph.groups[i].name for i in found if i >= 0)


def producers(graph: ChannelGraph) -> Iterator[tuple[tuple[str, int], ...]]:
    """The parameters that make channels, layer by layer: (name, axis along which the channels lie).

    Known layers by type. A parameter that stands by itself makes the channels of its only labelled
    axis, or of axis 0 where it has several; one that is no more than a vector (a layer scale, a
    class token) makes none, it only changes them.
    """
    for path, module in graph.model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or isinstance(module, NORMS):
            continue
        axes: dict[str, int] = {}
        for name, parameter in own.items():
            if isinstance(module, (_ConvTransposeNd, nn.Embedding, nn.EmbeddingBag)) and name == "weight":
                axes[name] = 1
            elif isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention)):
                axes[name] = 0
            elif sum(n > 1 for n in parameter.shape) >= 2:
                labels = graph.axes.get(_joined(path, name)) or ()
                labelled = [i for i, units in enumerate(labels) if units is not None]
                axes[name] = labelled[0] if labelled else 0
        found = tuple((_joined(path, name), axis) for name, axis in axes.items())
        if found:
            yield found


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def along(tensor: Tensor, axis: int) -> Tensor:
    """Sum over all axes but one, in float64."""
    others = [i for i in range(tensor.dim()) if i != axis]
    return tensor.sum(dim=others, dtype=torch.float64) if others else tensor.double()
