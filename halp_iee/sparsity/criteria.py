"""What a weight is worth: pure functions of values and gradients, all of the weight's shape.

A higher score is kept before a lower one, and grown before it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|w|.

    Source: Han et al. 2015; RigL, SET and IEE drop by it, IEE grows by it too.
    """
    return weight.detach().abs()


def gradient(grad: Tensor) -> Tensor:
    """|g| of the dense gradient: how much the loss would fall at once if a zero weight came alive.

    Source: RigL, section 3.
    """
    return grad.detach().abs()


def magnitude_and_gradient(weight: Tensor, grad: Tensor, lam: float) -> Tensor:
    """|w| + |lambda g|.

    Args:
        weight: the values.
        grad: of the loss by them; only that of live weights matters.
        lam: lambda, in units of weight per unit of gradient.

    Source: MEST, eq. 1.
    """
    return weight.detach().abs() + (lam * grad.detach()).abs()


def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """|w g|: to first order, how much the loss changes if the weight becomes zero.

    Source: Molchanov et al. 2019, eq. 7 (before squaring); up to a constant SNIP's connection
    sensitivity (Lee et al. 2019, eq. 5).
    """
    return (weight.detach() * grad.detach()).abs()


def random(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), drawn on the CPU: the same numbers on every device and process."""
    return torch.rand(shape, generator=generator)


# Channels: one score a row (output channel) of the weight.


def umm(weight: Tensor, mask: Tensor) -> Tensor:
    """Unmasked mean magnitude: mean |w| over the whole filter, its zeros included. [rows].

    Source: Chase, table 1 and section 2.2 ("the mean magnitude of all the weights, including zero and
    nonzero"). Small: the channel is sparse, in quantity and in quality.
    """
    return (weight.detach().abs() * mask).flatten(1).mean(1)


def ws(weight: Tensor, mask: Tensor) -> Tensor:
    """Weight sparsity: fraction of the filter's weights that are dead. [rows]. Large: prune first.

    Source: Chase, table 1.
    """
    return 1.0 - mask.flatten(1).float().mean(1)


def mmm(weight: Tensor, mask: Tensor) -> Tensor:
    """Masked mean magnitude: mean |w| over the live weights; 0 for a filter without any. [rows].

    Source: Chase, table 1, given there as the relative that does not work.
    """
    live = mask.flatten(1).sum(1)
    return (weight.detach().abs() * mask).flatten(1).sum(1) / live.clamp(min=1)


def amenable(initial: Tensor, now: Tensor, v: float, *, falling: bool = True) -> Tensor:
    """Which channels have become amenable to pruning: their score moved by more than the ratio v. [rows] bool.

    Args:
        initial: UMM or WS at the start.
        now: the same at present.
        v: 0.2 for a fifth.
        falling: True for UMM, which falls; False for WS, which rises.

    Source: Chase, section 2.2.
    """
    change = (initial - now) if falling else (now - initial)
    return change > v * initial


CHANNEL_CRITERIA = {"umm": umm, "mmm": mmm, "ws": lambda weight, mask: 1.0 - ws(weight, mask)}
"""By name, turned so that a higher score is kept."""
