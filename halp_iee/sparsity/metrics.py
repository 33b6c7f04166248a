"""How masks change: pure functions of masks, layer name -> bool tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

MaskMap = Mapping[str, Tensor]


def live(masks: MaskMap) -> int:
    """Weights that live, over all layers."""
    return sum(int(mask.sum()) for mask in masks.values())


def sparsity(masks: MaskMap) -> float:
    """Fraction of dead weights, over all layers."""
    total = sum(mask.numel() for mask in masks.values())
    return 1.0 - live(masks) / total if total else 0.0


def sparsity_by_layer(masks: MaskMap) -> dict[str, float]:
    return {name: 1.0 - int(mask.sum()) / mask.numel() for name, mask in masks.items()}


def _shared(a: MaskMap, b: MaskMap) -> int:
    return sum(int((mask & b[name]).sum()) for name, mask in a.items())


def iou(a: MaskMap, b: MaskMap) -> float:
    """Intersection over union of two structures of the same layers; 1 if both are empty.

    Source: IEE, section 4.4, figure 5 (a).
    """
    both = _shared(a, b)
    either = live(a) + live(b) - both
    return both / either if either else 1.0


def survival(grown: MaskMap, pruned: MaskMap) -> float | None:
    """Fraction of the grown weights that the next prune leaves alive; None if nothing had grown.

    Args:
        grown: what the last update brought to life.
        pruned: the masks after the next prune, before anything grows again.

    Source: IEE, section 4.4, figure 5 (b).
    """
    many = live(grown)
    return _shared(grown, pruned) / many if many else None


def exploration_rate(explored: MaskMap) -> float:
    """R_s: fraction of all weights that have ever lived.

    Source: Liu et al. 2021 (ITOP), section 3.1.
    """
    total = sum(mask.numel() for mask in explored.values())
    return live(explored) / total if total else 0.0
