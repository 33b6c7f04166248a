"""First-order Taylor importance: how much the loss would change if a unit were gated off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from halp_iee.importance.units import (
    Positions,
    Scores,
    Tensors,
    UnitSums,
    along,
    groups_with_norm,
    norms,
    producers,
)

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph


def taylor_bn(
    graph: ChannelGraph, tensors: Tensors, grads: Tensors, positions: Positions | None = None, *, power: int = 1
) -> Scores:
    """Taylor importance on the affine parameters of the normalisation layers.

        I_j = sum over the layers n that carry unit j, over its channels c,
              | g_gamma[n, c] gamma[n, c] + g_beta[n, c] beta[n, c] |

    That is |dL/dz| for a gate z = 1 multiplied onto the channel after the layer. A group without
    such a layer takes `taylor_weight`, unscaled: there the same gate stands on the output of the
    convolution or linear layer, so both are changes of the loss and may be compared. (In front of
    a BatchNorm the gate on the convolution would be useless: the layer undoes any scale, and the
    sum of g w over a filter is 0.)

    Args:
        graph: of the network.
        tensors: parameter name -> values.
        grads: parameter name -> gradient of the loss; a parameter without one counts as 0.
        positions: which full-size positions slim tensors hold.
        power: to which each layer's derivative is raised before the layers are added up.

    Returns:
        One score a unit for every prunable group; 0 for units that the tensors do not hold.

    Source: Molchanov et al. 2019, section 3.2 (gate after BatchNorm); IEE's appendix, eq. 2.
    Deviation: LayerNorm, GroupNorm and InstanceNorm with affine parameters count as BatchNorm does,
    for the same reason.
    """
    sums = UnitSums(graph, positions)
    for name in norms(graph):
        gate = None
        for parameter in (f"{name}.weight", f"{name}.bias"):
            if parameter in tensors and parameter in grads and tensors[parameter].dim() == 1:
                product = tensors[parameter] * grads[parameter]
                gate = product if gate is None else gate + product
        ids = sums.ids(f"{name}.weight", 0)
        if gate is not None and ids is not None:
            sums.add(ids, gate.abs() ** power)
    scores = sums.total()
    having = groups_with_norm(graph)
    without = [name for name in scores if name not in having]
    if without:
        other = taylor_weight(graph, tensors, grads, positions, power=power)
        scores |= {name: other[name] for name in without}
    return scores


def taylor_weight(
    graph: ChannelGraph, tensors: Tensors, grads: Tensors, positions: Positions | None = None, *, power: int = 1
) -> Scores:
    """Taylor importance on the weights that make a unit's channels.

        I_j = sum over the layers that make unit j of | sum over its slice of g w (+ g_b b) |

    The signed sum over the slice is the derivative of the loss by a gate on the layer's output.

    Args and returns: as `taylor_bn`.

    Source: Molchanov et al. 2019, eq. 8 on whole filters, absolute rather than squared so that its
    unit is that of the loss.
    """
    sums = UnitSums(graph, positions)
    for parameters in producers(graph):
        ids: list[np.ndarray] = []
        gates: list[Tensor] = []
        for name, axis in parameters:
            units = sums.ids(name, axis)
            if units is not None and name in tensors and name in grads:
                ids.append(units)
                gates.append(along(tensors[name] * grads[name], axis))
        if ids:
            unit, place = np.unique(np.concatenate(ids), return_inverse=True)
            gate = torch.cat(gates)
            signed = torch.zeros(len(unit), dtype=torch.float64, device=gate.device)
            signed.index_add_(0, torch.from_numpy(place.astype(np.int64)).to(gate.device), gate)
            sums.add(unit, signed.abs() ** power)
    return sums.total()


def fisher(graph: ChannelGraph, tensors: Tensors, grads: Tensors, positions: Positions | None = None) -> Scores:
    """Fisher importance: how much the loss would rise to second order if a unit were gated off.

        I_j = 1/2 sum over the layers n that carry unit j, over its channels c, of (dL/dz[n, c])^2

    with the gates z of `taylor_bn`. Averaged over steps it estimates 1/2 E[(dL/dz)^2], the empirical Fisher
    information of the gates, which stands for their curvature.

    Args and returns: as `taylor_bn`.

    Source: Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", eq. 9.
    Deviation: the gradient is that of a batch, not of a single image; its square is a sum over pairs of images.
    """
    return {name: values / 2 for name, values in taylor_bn(graph, tensors, grads, positions, power=2).items()}
