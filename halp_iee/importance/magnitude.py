"""How large the weights of a unit are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from halp_iee.importance.units import Positions, Scores, Tensors, UnitSums, along, producers

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph


def magnitude(
    graph: ChannelGraph, tensors: Tensors, positions: Positions | None = None, *, p: Literal[1, 2] = 2
) -> Scores:
    """The L1 or L2 norm of the weights that make a unit's channels, without biases.

        I_j = sum over the layers that make unit j of || its slice of w ||_p

    Args:
        graph: of the network.
        tensors: parameter name -> values.
        positions: which full-size positions slim tensors hold.
        p: 1 or 2.

    Returns:
        One score a unit for every prunable group; 0 for units that the tensors do not hold.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets" (p = 1). Deviation: it ranks
    within a layer; here the norms of all layers are compared as they are.
    """
    sums = UnitSums(graph, positions)
    for parameters in producers(graph):
        for name, axis in parameters:
            ids = sums.ids(name, axis)
            if ids is None or name not in tensors or tensors[name].dim() < 2:
                continue
            values = tensors[name].detach()
            values = values.abs() if p == 1 else values.square()
            unit, place = np.unique(ids, return_inverse=True)
            powers = torch.zeros(len(unit), dtype=torch.float64, device=values.device)
            index = torch.from_numpy(place.astype(np.int64)).to(values.device)
            powers.index_add_(0, index, along(values, axis))
            sums.add(unit, powers ** (1 / p))
    return sums.total()
