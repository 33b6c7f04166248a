"""How strongly the normalisation layers let a unit through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halp_iee.importance.magnitude import magnitude
from halp_iee.importance.units import Positions, Scores, Tensors, UnitSums, groups_with_norm, norms

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph


def bn_scale(graph: ChannelGraph, tensors: Tensors, positions: Positions | None = None) -> Scores:
    """The scale of the normalisation layers.

        I_j = sum over the layers n that carry unit j, over its channels c, of | gamma[n, c] |

    A group without such a layer takes the L2 norm of the weights that make it, scaled so that a
    group's mean equals the mean over the groups that have one: the norm is no scale, but within a
    group it ranks the units, and between groups none is favoured.

    Args and returns: as `magnitude`.

    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming".
    """
    sums = UnitSums(graph, positions)
    for name in norms(graph):
        ids = sums.ids(f"{name}.weight", 0)
        if ids is not None and f"{name}.weight" in tensors and tensors[f"{name}.weight"].dim() == 1:
            sums.add(ids, tensors[f"{name}.weight"].abs())
    scores = sums.total()
    having = groups_with_norm(graph)
    without = [name for name in scores if name not in having]
    if without:
        means = [float(values[values > 0].mean()) for name, values in scores.items() if name in having and values.any()]
        mean = sum(means) / len(means) if means else 1.0
        norm = magnitude(graph, tensors, positions)
        for name in without:
            values = norm[name]
            scores[name] = values * (mean / float(values[values > 0].mean())) if values.any() else values
    return scores
