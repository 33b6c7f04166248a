"""Gradual magnitude pruning: from dense to the target along a cubic, nothing comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halp_iee.errors import UsageError
from halp_iee.methods.sparse.base import SparseConfig, SparseMethod
from halp_iee.methods.sparse.exchange import Masks, drop
from halp_iee.sparsity.distributions import distribute
from halp_iee.sparsity.layers import checked_sparsity
from halp_iee.sparsity.patterns import IndependentPattern
from halp_iee.sparsity.schedules import cubic


@dataclass(frozen=True)
class GMPConfig(SparseConfig):
    """Gradual magnitude pruning's settings.

    Attributes:
        initial: sparsity at the start, S_i.
        start: fraction of the training after which pruning begins.
    """

    distribution: object = "uniform"  # type: ignore[assignment]
    initial: float = 0.0
    start: float = 0.0


class GMP(SparseMethod):
    """Every `every` steps the smallest |w| die until the sparsity is the schedule's:

        S_t = S_f + (S_i - S_f) (1 - (t - t_0) / (t_end - t_0))^3

    The last update comes at `stop` and brings the target exactly.

    Source: Zhu and Gupta 2017, eq. 1. See docs/methods/gmp.md.
    """

    Config = GMPConfig
    config: GMPConfig
    starts_dense = True

    def _set_up_budget(self) -> None:
        super()._set_up_budget()
        if not isinstance(self.pattern, IndependentPattern):
            raise UsageError(
                f"gradual pruning cannot have the pattern {self.pattern.name}",
                "on the way down from the dense network it does not hold",
                "take unstructured, channel or blocks",
            )
        checked_sparsity(self.config.initial)

    def _due(self) -> bool:
        first = int(self.config.start * self.steps)
        on_time = self.taken >= first and (self.taken - first) % self.config.every == 0
        return self.taken == self.last_update or (on_time and self.taken < self.last_update)

    def _sparsity_now(self) -> float:
        if self.taken >= self.last_update:
            return self.target
        first = int(self.config.start * self.steps)
        if self.taken < first:
            return self.config.initial
        return cubic(self.config.initial, self.target, (self.taken - first) / max(1, self.last_update - first))

    def _budget_at(self, sparsity: float) -> dict[str, int] | int:
        if sparsity >= self.target:
            return self.total if self.is_global else dict(self.budget)
        distribution = self.distribution
        if isinstance(distribution, str):
            counts = distribute(self.layers, sparsity, distribution, init=self.config.init)
        else:  # every layer's own target, reached by the same share of the way
            way = sparsity / self.target if self.target else 1.0
            counts = {la.name: round(la.numel * (1 - way * distribution[la.name])) for la in self.layers}
        atoms = {layer.name: self.pattern.atoms(layer, counts[layer.name]) for layer in self.layers}
        return sum(atoms.values()) if self.is_global else {n: max(a, self.budget[n]) for n, a in atoms.items()}

    def expected(self) -> dict[str, int] | int:
        return self._standing

    def _first_masks(self) -> Masks:
        masks = super()._first_masks()
        atoms = {name: self.pattern.count(mask) for name, mask in masks.items()}
        self._standing: dict[str, int] | int = sum(atoms.values()) if self.is_global else atoms
        return masks

    def _update(self) -> None:
        target = self._budget_at(self._sparsity_now())
        now = {name: self.pattern.count(mask) for name, mask in self.masks.items()}
        if isinstance(target, int):
            counts: dict[str, int] | int = max(0, sum(now.values()) - target)
            self._standing = min(target, sum(now.values()))
        else:
            counts = {name: max(0, now[name] - target[name]) for name in now}
            self._standing = {name: min(target[name], now[name]) for name in now}
        masks = drop(self.pattern, self.masks, self.magnitudes(), counts)
        self._install(masks, kind="prune", pruned=masks)

    def _meta(self) -> dict[str, Any]:
        return {"standing": self._standing}

    def _load(self, groups: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
        super()._load(groups, meta)
        self._standing = meta["standing"]
