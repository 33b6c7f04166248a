"""What the training minimises: cross-entropy, smoothed labels, and what a teacher says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halp_iee.train.recipe import Recipe


class Objective:
    """The loss of a batch, as a sum over its images.

        (1 - a) CE(z, y) + a T^2 KL(softmax(z_teacher / T) || softmax(z / T))

    with a = `recipe.distill` and T = `recipe.distill_temperature`.

    Args:
        recipe: the weights of the parts.
        teacher: a trained network with the same classes; run without gradients, in evaluation mode.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network".
    """

    def __init__(self, recipe: Recipe, teacher: nn.Module | None = None) -> None:
        self.recipe, self.teacher = recipe, teacher
        if teacher is not None:
            teacher.eval()

    def __call__(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Sum over the batch: logits [N, classes], labels [N]."""
        share = self.recipe.distill
        loss = F.cross_entropy(
            logits.float(), labels, label_smoothing=self.recipe.label_smoothing, reduction="sum"
        )  # fmt: skip
        if self.teacher is None or share == 0:
            return loss
        heat = self.recipe.distill_temperature
        with torch.no_grad():
            wanted = F.log_softmax(self.teacher(images).float() / heat, dim=1)
        given = F.log_softmax(logits.float() / heat, dim=1)
        return (1 - share) * loss + share * heat**2 * F.kl_div(given, wanted, log_target=True, reduction="sum")
