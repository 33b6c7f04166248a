"""The one place where the optimizer forgets about weights that died or have just been born."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from halp_iee.errors import UsageError


def reset_slots(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, where: Tensor) -> None:
    """Zero every slot of the optimizer's state (momentum, first and second moments, ...) where `where` holds.

    Scalars, such as Adam's count of steps, belong to no single weight and stay.

    Args:
        optimizer: any whose state lies in tensors of the parameter's shape.
        parameter: whose state it is.
        where: bool, of the parameter's shape.

    Raises:
        UsageError: a slot has another shape (Adafactor's factored moments, Shampoo's), so the past of
            single weights cannot be told apart in it.

    Source: RigL, section 3 (4), and its reference code; SRigL and MEST say nothing else.
    """
    for slot, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, Tensor) or value.numel() <= 1:
            continue
        if value.shape != parameter.shape:
            raise UsageError(
                f"{type(optimizer).__name__} cannot train sparsely",
                f"its state {slot!r} has the shape {tuple(value.shape)} for a weight of shape "
                f"{tuple(parameter.shape)}, so a new weight cannot start afresh",
                "use SGD, Adam, AdamW, RMSprop or another optimizer with one value a weight",
            )
        value.masked_fill_(where, 0)


def slots_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The slots that `reset_slots` works on."""
    state = optimizer.state.get(parameter, {})
    return {name: v for name, v in state.items() if isinstance(v, Tensor) and v.numel() > 1}
