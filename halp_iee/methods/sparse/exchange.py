"""Dropping and growing over all layers: by given counts, or by one ranking. Pure functions of masks and scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from halp_iee.errors import UsageError
from halp_iee.sparsity.metrics import MaskMap
from halp_iee.sparsity.patterns import IndependentPattern, Pattern
from halp_iee.sparsity.topk import order

Masks = dict[str, Tensor]


def drop(pattern: Pattern, masks: MaskMap, scores: Mapping[str, Tensor], counts: Mapping[str, int] | int) -> Masks:
    """The masks without the atoms of least score: `counts` of each layer, or so many of all layers together.

    In one ranking over all layers each layer keeps its best atom, so that none dies out.
    """
    if isinstance(counts, int):
        counts = _shares(pattern, masks, scores, counts, dropping=True)
    return {name: pattern.drop(mask, scores[name], counts[name]) for name, mask in masks.items()}


def grow(
    pattern: Pattern,
    masks: MaskMap,
    scores: Mapping[str, Tensor],
    counts: Mapping[str, int] | int,
    allowed: Mapping[str, Tensor] | None = None,
) -> Masks:
    """The masks with the dead atoms of greatest score, of those that `allowed` names.

    Raises:
        UsageError: one ranking is to bring back more atoms than there are.
    """
    if isinstance(counts, int):
        counts = _shares(pattern, masks, scores, counts, dropping=False, allowed=allowed)
    return {
        name: pattern.grow(mask, scores[name], counts[name], None if allowed is None else allowed[name])
        for name, mask in masks.items()
    }


def _shares(
    pattern: Pattern,
    masks: MaskMap,
    scores: Mapping[str, Tensor],
    total: int,
    *,
    dropping: bool,
    allowed: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """How many of the `total` best (or worst) atoms of all layers lie in each."""
    if not isinstance(pattern, IndependentPattern):
        raise UsageError(
            f"the pattern {pattern.name} cannot have a global distribution",
            "what may live in one place depends on what lives beside it, so layers cannot share one ranking",
            "take erk or uniform",
        )
    pooled, layer = [], []
    for i, (name, mask) in enumerate(masks.items()):
        pool = pattern.pool(scores[name])
        if dropping:
            among = pattern.alive(mask)
            pool = pool.masked_fill(~among, torch.inf)
            if among.any():
                best = order(pool.masked_fill(~among, -torch.inf))[0]
                among = among.clone()
                among[best] = False
        else:
            among = pattern.available(mask, None if allowed is None else allowed[name])
        pooled.append(pool[among])
        layer.append(torch.full((int(among.sum()),), i, device=pool.device))
    values, owner = torch.cat(pooled), torch.cat(layer)
    if total > len(values):
        raise UsageError(
            "the distribution cannot be met",
            f"{total} {'live' if dropping else 'dead'} atoms are to be {'dropped' if dropping else 'grown'} "
            f"and there are {len(values)}",
            "ask for a lower channel sparsity" if not dropping else "ask for a lower sparsity",
        )
    chosen = owner[order(values, descending=not dropping)[:total]]
    share = torch.bincount(chosen, minlength=len(masks)).tolist()
    return dict(zip(masks, share, strict=True))
