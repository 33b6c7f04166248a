"""SNIP: one look at the dense network's gradient decides, and the masks stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halp_iee.methods.sparse.base import Gradient, SparseConfig, SparseMethod
from halp_iee.methods.sparse.exchange import drop
from halp_iee.sparsity import criteria


@dataclass(frozen=True)
class SNIPConfig(SparseConfig):
    """SNIP's settings; `distribution="global"` is the published form."""

    distribution: object = "global"  # type: ignore[assignment]


class SNIP(SparseMethod):
    """Prunes once, before the first step, by connection sensitivity |w g| of the first batch.

    Until then the network is dense. With `distribution="global"` all weights are ranked together, as
    published; with another one each layer keeps its share. In one ranking each layer keeps at least its
    best weight, where the paper lets layers die.

    Source: Lee et al. 2019, section 4 and algorithm 1. See docs/methods/snip.md.
    """

    Config = SNIPConfig
    starts_dense = True
    replaces_step = True

    def _due(self) -> bool:
        return self.updates == 0

    def _wanted_gradient(self) -> Gradient:
        return "all" if self.updates == 0 else "live"

    @property
    def done(self) -> bool:
        return self.updates > 0

    def expected(self) -> dict[str, int] | int:
        if self.updates == 0:
            return {name: self.pattern.count(mask) for name, mask in self.masks.items()}
        return super().expected()

    def _update(self) -> None:
        scores = {
            layer.name: criteria.taylor(self.weight(layer.name), self.gradient(layer.name)) for layer in self.layers
        }
        if self.is_global:
            dead = sum(self.pattern.count(mask) for mask in self.masks.values()) - self.total
            masks = drop(self.pattern, self.masks, scores, dead)
        else:
            masks = {
                name: self.pattern.grow(torch.zeros_like(mask), scores[name], self.budget[name])
                for name, mask in self.masks.items()
            }
        self.explored = {name: mask.clone() for name, mask in masks.items()}
        self._install(masks, kind="prune")
