"""The optimizer of a recipe."""

from __future__ import annotations

import torch
from torch import nn

from halp_iee.errors import UsageError
from halp_iee.train.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over the model's parameters; no weight decay on norms and biases.

    Decay on a norm's scale would make units look unimportant that are not, and its effect on
    weights before a norm is one of step size only (van Laarhoven 2017).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UsageError("the network cannot be trained", "no parameter requires a gradient", "unfreeze some")
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
