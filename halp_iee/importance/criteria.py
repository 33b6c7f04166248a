"""The criteria by name, applied to a model as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from halp_iee.errors import UsageError
from halp_iee.importance.bn_scale import bn_scale
from halp_iee.importance.chance import random
from halp_iee.importance.magnitude import magnitude
from halp_iee.importance.taylor import fisher, taylor_bn, taylor_weight
from halp_iee.importance.units import Positions, Scores

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph

_BY_GRADIENT: Mapping[str, Callable[..., Scores]] = {
    "taylor_bn": taylor_bn,
    "taylor_weight": taylor_weight,
    "fisher": fisher,
}
_BY_WEIGHT: Mapping[str, Callable[..., Scores]] = {
    "magnitude_l1": partial(magnitude, p=1),
    "magnitude_l2": partial(magnitude, p=2),
    "bn_scale": bn_scale,
}

CRITERIA = (*_BY_GRADIENT, *_BY_WEIGHT, "random")
NEEDS_GRADIENTS = frozenset(_BY_GRADIENT)
"""Those that look at `parameter.grad`, so a backward pass must have come before."""


def score(
    criterion: str,
    model: nn.Module,
    graph: ChannelGraph,
    positions: Positions | None = None,
    *,
    seed: int = 0,
) -> Scores:
    """Score every unit of every prunable group.

    Args:
        criterion: one of `CRITERIA`.
        model: the network that `graph` is of, whole or slim, with gradients in place if the
            criterion needs them.
        graph: its channel graph.
        positions: if the model is slim, which full-size positions its tensors hold.
        seed: of `random`.

    Raises:
        UsageError: no such criterion, or no gradients.
    """
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if criterion in _BY_GRADIENT:
        grads = {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}
        if not grads:
            raise UsageError(
                f"{criterion} cannot judge this network", "none of its parameters has a gradient",
                "call loss.backward() first, or take magnitude_l2",
            )  # fmt: skip
        return _BY_GRADIENT[criterion](graph, tensors, grads, positions)
    if criterion in _BY_WEIGHT:
        return _BY_WEIGHT[criterion](graph, tensors, positions)
    if criterion == "random":
        return random(graph, seed)
    raise UsageError(f"unknown importance {criterion!r}", f"there are {', '.join(CRITERIA)}", "choose one of them")
