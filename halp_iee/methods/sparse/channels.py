"""Which channels of a network still live, while a method removes them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from halp_iee.errors import UsageError
from halp_iee.sparsity.criteria import CHANNEL_CRITERIA

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph


class LiveChannels:
    """The channels that may be removed, and which of them live.

    Args:
        graph: of the network; says which positions of which parameters belong to a channel.
        model: the network in training; its parameters have the names of the graph's.
        most: fraction of the channels that will be removed in the end.
        beta: every group keeps at least `int(C (1 - most) beta)` channels, and never none.
        criterion: `umm`, `ws` or `mmm`.
        skip: whether channels with several producers or consumers (residual connections) count.

    Raises:
        UsageError: no channels may be removed, or the floors leave too few.
    """

    def __init__(
        self, graph: ChannelGraph, model: nn.Module, *, most: float, beta: float, criterion: str, skip: bool
    ) -> None:
        self.graph, self.model, self.criterion = graph, model, criterion
        producers, consumers = producers_and_consumers(graph)
        self._producers = producers
        self.groups = [
            i for i, group in enumerate(graph.groups)
            if group.prunable and group.size > 1 and producers[i]
            and (skip or (len(producers[i]) == 1 and len(consumers[i]) == 1))
        ]  # fmt: skip
        if not self.groups:
            raise UsageError(
                "no channels of this network can be removed",
                "every group of channels is frozen or carried by a residual connection",
                "set channel_sparsity=0, or prune_skip=True",
            )
        self.live = {graph.groups[i].name: np.ones(graph.groups[i].size, dtype=bool) for i in self.groups}
        self.least = {graph.groups[i].name: max(1, int(graph.groups[i].size * (1 - most) * beta)) for i in self.groups}
        self._find_gone()
        self.size = sum(len(units) for units in self.live.values())
        removable = sum(len(units) - self.least[name] for name, units in self.live.items())
        if removable < int(most * self.size):
            raise UsageError(
                f"a channel sparsity of {most:g} cannot be met",
                f"only {removable} of {self.size} channels may be removed if every layer keeps beta = {beta:g} "
                "of its share",
                "lower channel_sparsity or beta",
            )

    @property
    def sparsity(self) -> float:
        return 1.0 - sum(int(units.sum()) for units in self.live.values()) / self.size

    def keep(self) -> dict[str, np.ndarray]:
        """Group -> live units, as `ChannelGraph.slim` takes them."""
        return {name: np.flatnonzero(units) for name, units in self.live.items()}

    def load(self, units: Mapping[str, np.ndarray]) -> None:
        self.live = {name: units[name].astype(bool).copy() for name in self.live}
        self._find_gone()

    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Score of every unit: the mean over its filters, weighted by their size. Layer -> mask, dense if absent."""
        parameters = dict(self.model.named_parameters())
        result = {}
        for i in self.groups:
            group = self.graph.groups[i]
            sums, weights = np.zeros(group.size), np.zeros(group.size)
            for layer in self._producers[i]:
                name = f"{layer}.weight" if layer else "weight"
                weight = parameters[name].detach()
                mask = masks.get(layer, torch.ones_like(weight, dtype=torch.bool))
                rows = CHANNEL_CRITERIA[self.criterion](weight, mask).double().cpu().numpy()
                axis = self.graph.axes[name][0]
                assert axis is not None
                mine = np.asarray(axis.group) == i
                size = weight[0].numel()
                np.add.at(sums, np.asarray(axis.unit)[mine], rows[mine] * size)
                np.add.at(weights, np.asarray(axis.unit)[mine], size)
            result[group.name] = sums / np.maximum(weights, 1)
        return result

    def remove_until(self, sparsity: float, masks: Mapping[str, Tensor]) -> None:
        """Remove live units of least score over all groups until `int(sparsity * units)` are gone."""
        missing = int(sparsity * self.size + 1e-9) - sum(int((~units).sum()) for units in self.live.values())
        if missing <= 0:
            return
        names, indices, values = [], [], []
        for number, (name, scores) in enumerate(self.scores(masks).items()):
            live = np.flatnonzero(self.live[name])
            ranked = live[np.argsort(scores[live], kind="stable")]
            free = np.sort(ranked[: max(0, len(live) - self.least[name])])
            names.append(np.full(len(free), number))
            indices.append(free)
            values.append(scores[free])
        owner, unit = np.concatenate(names), np.concatenate(indices)
        groups = list(self.live)
        for place in np.argsort(np.concatenate(values), kind="stable")[:missing]:
            self.live[groups[owner[place]]][unit[place]] = False
        self._find_gone()

    def dead(self, parameter: str) -> Tensor:
        """Bool of the parameter's shape: what belongs to a removed channel, on any of its axes."""
        tensor = dict(self.model.named_parameters())[parameter]
        result = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
        for axis, index in self._gone.get(parameter, ()):
            result.index_fill_(axis, index.to(tensor.device), True)
        return result

    def hold(self) -> None:
        """Zero everything that belongs to removed channels: filters, what reads them, scales, shifts, biases."""
        parameters = dict(self.model.named_parameters())
        for name, axes in self._gone.items():
            for axis, index in axes:
                parameters[name].index_fill_(axis, index.to(parameters[name].device), 0.0)

    def _find_gone(self) -> None:
        """Parameter -> (axis, positions) of the removed channels."""
        self._gone: dict[str, list[tuple[int, Tensor]]] = {}
        for name, _ in self.model.named_parameters():
            for axis, units in enumerate(self.graph.axes.get(name) or ()):
                if units is None:
                    continue
                group, unit = np.asarray(units.group), np.asarray(units.unit)
                gone = np.zeros(len(group), dtype=bool)
                for i in self.groups:
                    mine = group == i
                    gone[mine] = ~self.live[self.graph.groups[i].name][unit[mine]]
                if gone.any():
                    self._gone.setdefault(name, []).append((axis, torch.from_numpy(np.flatnonzero(gone))))


def producers_and_consumers(graph: ChannelGraph) -> tuple[list[list[str]], list[list[str]]]:
    """For every group the layers that make its channels and those that read them.

    A depthwise convolution, and any whose units are whole convolution groups, does neither: it carries them on.
    """
    producers: list[list[str]] = [[] for _ in graph.groups]
    consumers: list[list[str]] = [[] for _ in graph.groups]
    for name, module in graph.model.named_modules():
        if not isinstance(module, (_ConvNd, nn.Linear)) or isinstance(module, _ConvTransposeNd):
            continue
        if getattr(module, "groups", 1) > 1 and name not in graph.structure.kept_groups:
            continue
        axes = graph.axes.get(f"{name}.weight" if name else "weight")
        for axis, into in ((0, producers), (1, consumers)):
            units = axes[axis] if axes else None
            if units is not None:
                for i in np.unique(np.asarray(units.group)):
                    if i >= 0:
                        into[int(i)].append(name)
    return producers, consumers
