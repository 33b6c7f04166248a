"""The one way in which anything is chosen here: by score, ties to the lower index, on every device alike."""

from __future__ import annotations

import torch
from torch import Tensor

from halp_iee.errors import TrainingError


def order(scores: Tensor, *, descending: bool = True) -> Tensor:
    """Indices of the flat scores from best to worst; equal scores in the order of their index.

    Raises:
        TrainingError: a score is not a number, so nothing can be chosen by it.
    """
    flat = scores.detach().reshape(-1)
    if torch.isnan(flat).any():
        raise TrainingError(
            "the masks cannot be updated", "a weight or gradient is not a number", "lower the learning rate"
        )
    return torch.sort(flat, descending=descending, stable=True).indices


def largest(scores: Tensor, n: int, among: Tensor) -> Tensor:
    """Bool of the scores' shape: the `n` largest among those where `among` holds; all of these if fewer."""
    return _chosen(scores.masked_fill(~among, -torch.inf), n, among, True)


def smallest(scores: Tensor, n: int, among: Tensor) -> Tensor:
    """As `largest`, the smallest."""
    return _chosen(scores.masked_fill(~among, torch.inf), n, among, False)


def _chosen(scores: Tensor, n: int, among: Tensor, descending: bool) -> Tensor:
    result = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if n > 0:
        result[order(scores, descending=descending)[:n]] = True
    return result.reshape(scores.shape) & among


def largest_in_rows(scores: Tensor, n: Tensor, among: Tensor) -> Tensor:
    """[R, C] bool: in every row r the `n[r]` largest scores among those where `among` holds.

    Args:
        scores: [R, C].
        n: [R] counts.
        among: [R, C] bool.
    """
    if torch.isnan(scores).any():
        order(scores)  # raises
    ranked = torch.sort(scores.masked_fill(~among, -torch.inf), dim=1, descending=True, stable=True).indices
    place = torch.empty_like(ranked)
    place.scatter_(1, ranked, torch.arange(scores.shape[1], device=scores.device).expand_as(ranked))
    return (place < n[:, None]) & among
