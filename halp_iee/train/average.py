"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of the network whose values follow the trained ones.

        a <- d_t a + (1 - d_t) w,     d_t = min(d, (1 + t) / (10 + t))

    after step t; without the ramp the random start would weigh for 1 / (1 - d) steps. BatchNorm's statistics
    are averaged as weights are; counts are copied.

    Args:
        model: the network; the copy begins with its values.
        decay: d.

    Source: Polyak and Juditsky 1992; the ramp is TensorFlow's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the values after `step` finished steps (the first call says 1)."""
        rate = 1.0 - min(self.decay, (1 + step) / (10 + step))
        mine = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                mine[name].lerp_(tensor.detach(), rate)
            else:
                mine[name].copy_(tensor)

    @torch.no_grad()
    def give_to(self, model: nn.Module) -> None:
        """Put the averaged values into the model."""
        mine = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(mine[name])
