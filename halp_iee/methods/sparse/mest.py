"""MEST: exchange by |w| + lambda |g| and at random, with a fraction that falls and a memory bound that may be soft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from halp_iee.errors import UsageError
from halp_iee.methods.sparse.base import SparseConfig, SparseMethod
from halp_iee.methods.sparse.exchange import Masks, drop, grow
from halp_iee.sparsity import criteria
from halp_iee.sparsity.layers import SparseLayer
from halp_iee.sparsity.patterns import FanIn, NofM
from halp_iee.sparsity.schedules import milestones

Variant = Literal["plain", "em", "em&s"]

# The first p as a multiple of the density: at 90% sparsity 2 points of all weights are 0.2 of the live ones.
_SHARES = {"plain": 0.2, "em": 0.2, "em&s": 0.5}


@dataclass(frozen=True)
class MESTConfig(SparseConfig):
    """MEST's settings.

    Attributes:
        variant: `plain` (p stays), `em` (elastic mutation: p falls), `em&s` (and with a soft memory bound:
            grow, train, then remove).
        lam: lambda of the score |w| + |lambda g|. The paper's value is in an appendix that we do not have, and
            its code's default is 0; ours is small beside the weights of a network in training.
        p: points of **all** weights exchanged before, between and after the milestones, e.g. (0.02, 0.01, 0);
            None: 0.2, 0.1 and 0 of the density (`em&s`: 0.5, 0.25, 0), which is the paper's at 90 and 95%.
        at: the milestones as fractions of the training: epochs 90 and 120 of 160.
    """

    distribution: object = "uniform"  # type: ignore[assignment]
    kinds: tuple[str, ...] = ("conv",)
    stop: float = 120 / 160
    variant: Variant = "em&s"
    lam: float = 0.01
    p: tuple[float, ...] | None = None
    at: tuple[float, ...] = (90 / 160, 120 / 160)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in _SHARES:
            raise UsageError(
                f"unknown variant {self.variant!r} of MEST", f"there are {', '.join(_SHARES)}", "take em&s"
            )
        milestones(self.p or (0.0,) * (len(self.at) + 1), self.at, 0.0)
        if self.p is not None and any(not 0 <= p < 1 for p in self.p):
            raise UsageError(f"MEST cannot exchange {self.p} of all weights", "each must lie in [0, 1)", "give 0.02")


class MEST(SparseMethod):
    """Every `every` steps p of the weights are exchanged: the least |w| + |lambda g| die, random ones come back.

    `em`: remove to sparsity s + p, grow to s. `em&s`: grow to s - p, train, remove to s; the network is
    trained at s - p until p falls to 0, so what grew competes with what stood. Only gradients of live
    weights are used. The published setting is every 5 of 160 epochs, a uniform distribution over the
    convolutions with the first one dense, and linear layers dense.

    Source: Yuan et al. 2021, eq. 1 and algorithm 1. Its text and its algorithm differ on when grown weights
    are trained in `em&s` ("for every other Delta tau"); as in the algorithm, the next growth follows each
    removal at once. See docs/methods/mest.md.
    """

    Config = MESTConfig
    config: MESTConfig

    def _set_up_budget(self) -> None:
        super()._set_up_budget()
        self._extra: dict[str, int] | int = 0 if self.is_global else dict.fromkeys(self.budget, 0)
        if self.config.variant != "em&s":
            return
        if isinstance(self.pattern, (NofM, FanIn)):
            raise UsageError(
                f"a soft memory bound cannot be had with the pattern {self.pattern.name}",
                "while more weights than the budget live, the pattern does not hold",
                "take variant='em'",
            )
        for layer in self.layers:
            room = layer.numel // (9 if self.pattern.name == "kernel" else self.pattern.weights_an_atom(layer))
            most = self.budget[layer.name] + max(self._atoms(layer, p) for p in self._points())
            if most > room and not self.is_global:
                raise UsageError(
                    f"layer {layer.name!r} has no room for MEST's soft memory bound",
                    f"{most} atoms of {self.pattern.name} are to live for a while and it has {room}",
                    "raise the sparsity, give smaller p, or take variant='em'",
                )

    def _points(self) -> tuple[float, ...]:
        """p before, between and after the milestones, in parts of all weights."""
        if self.config.p is not None:
            return self.config.p
        first = _SHARES[self.config.variant]
        n = len(self.config.at)
        falls = 1.0 if self.config.variant == "plain" else 0.5
        return tuple(0.0 if i == n else first * falls**i * (1 - self.target) for i in range(n + 1))

    def _atoms(self, layer: SparseLayer, p: float) -> int:
        """p of a layer's weights, in atoms."""
        # A hair, so that 0.02 of 100 weights are two of them.
        return int(p * layer.numel / self.pattern.weights_an_atom(layer) + 1e-6)

    def mutation(self) -> dict[str, int] | int:
        """p at this moment, in atoms."""
        last = self.taken >= self.last_update
        p = 0.0 if last else milestones(self._points(), self.config.at, self.taken / self.steps)
        # A layer denser than the rest (a given distribution) still exchanges no more than lives in it.
        atoms = {layer.name: min(self._atoms(layer, p), self.budget[layer.name] - 1) for layer in self.layers}
        return sum(atoms.values()) if self.is_global else atoms

    def _due(self) -> bool:
        last = self.taken == self.last_update
        return self.taken > 0 and self.taken <= self.last_update and (last or self.taken % self.config.every == 0)

    def expected(self) -> dict[str, int] | int:
        if isinstance(self._extra, int):
            return self.total + self._extra
        return {la.name: self.pattern.used(la, self.budget[la.name]) + self._extra[la.name] for la in self.layers}

    def _scores(self) -> Masks:
        return {
            layer.name: criteria.magnitude_and_gradient(
                self.weight(layer.name), self.gradient(layer.name), self.config.lam
            )
            for layer in self.layers
        }

    def _update(self) -> None:
        p = self.mutation()
        if self.config.variant == "em&s":
            pruned = drop(self.pattern, self.masks, self._scores(), self._extra)
            masks = grow(self.pattern, pruned, self.random_scores(salt=1), p)
            self._extra = p
        else:
            pruned = drop(self.pattern, self.masks, self._scores(), p)
            masks = grow(self.pattern, pruned, self.random_scores(salt=1), p)
        self._install(masks, pruned=pruned)

    def _meta(self) -> dict[str, Any]:
        return {"extra": self._extra}

    def _load(self, groups: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
        super()._load(groups, meta)
        self._extra = meta["extra"]
