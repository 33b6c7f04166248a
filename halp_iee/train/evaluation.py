"""How good a network is on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from halp_iee.train.processes import Processes
from halp_iee.train.records import Split


@dataclass(frozen=True)
class Evaluation:
    """Shares in [0, 1] and mean cross-entropy in nats over `images` images.

    `top5` is None where there are fewer than six classes.
    """

    top1: float
    top5: float | None
    loss: float
    images: int


def evaluate(
    model: nn.Module, split: Split, device: str | torch.device = "cpu", *, batch_size: int = 250
) -> Evaluation:
    """Run the split through the network once, in evaluation mode.

    The mode of every module is what it was afterwards (a method may have frozen some), and no
    random number is drawn. Several processes each take their part, and all get the sums.
    """
    processes = Processes.here()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    top1, top5, loss, count, classes = 0, 0, 0.0, 0, 0
    try:
        with torch.no_grad():
            for images, labels in split.batches(batch_size, part=processes.part):
                if not len(labels):
                    continue
                labels = labels.to(device)
                logits = model(images.to(device))
                classes = logits.shape[1]
                ranked = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
                top1 += int(ranked[:, 0].sum())
                top5 += int(ranked.any(dim=1).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
                count += len(labels)
    finally:
        for module, mode in modes:
            module.training = mode
    sums = processes.total(top1, top5, loss, count)
    top1, top5, loss, count = int(sums[0]), int(sums[1]), sums[2], int(sums[3])
    return Evaluation(top1 / count, top5 / count if classes > 5 else None, loss / count, count)
