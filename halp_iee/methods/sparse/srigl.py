"""SRigL: RigL with a constant fan-in, and neurons that are given up when too few of their weights matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halp_iee.errors import UsageError
from halp_iee.methods.sparse.base import Gradient
from halp_iee.methods.sparse.exchange import Masks
from halp_iee.methods.sparse.set import SET, DropGrowConfig
from halp_iee.sparsity.patterns import FanIn, Pattern
from halp_iee.sparsity.topk import largest, smallest

_FAN_IN = FanIn()


@dataclass(frozen=True)
class SRigLConfig(DropGrowConfig):
    """SRigL's settings.

    Attributes:
        gamma: a neuron with fewer salient weights than `max(1, int(gamma k0))` is ablated, k0 being the
            fan-in before any ablation. 0.3; 0.95 for vision transformers. 0: never ablate.
    """

    pattern: str | Pattern = "fan-in"
    gamma: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.gamma <= 1.0:
            raise UsageError(f"gamma cannot be {self.gamma:g}", "it is a fraction of a neuron's fan-in", "give 0.3")
        if self.pattern not in ("fan-in", _FAN_IN) or self.distribution == "global":
            raise UsageError(
                "SRigL needs a constant fan-in", "the pattern or the distribution is another one",
                "leave out pattern=, and take uniform or erk",
            )  # fmt: skip


def update_layer(
    mask: Tensor, magnitude: Tensor, gradient: Tensor, *, exchanged: int, budget: int, k0: int, gamma: float
) -> tuple[Tensor, Tensor]:
    """One update of one layer.

    1. Salient are the live weights that are not among the `exchanged` smallest, and the `exchanged` dead
       weights of largest gradient.
    2. A neuron with fewer salient weights than `max(1, int(gamma k0))` is ablated; one that has as many
       lives, also if it was ablated before.
    3. k' = budget // active neurons.
    4. The `exchanged` smallest live weights of the layer die, and those of ablated neurons.
    5. Each active neuron grows to k' by gradient; one that has more than k' (neurons have come back)
       keeps its k' largest.

    So many neurons stay that k' does not exceed a neuron's inputs: those with most salient weights.

    Args:
        mask: bool, the weight's shape.
        magnitude: |w|.
        gradient: |g| of the dense gradient.
        exchanged: K.
        budget: weights that may live.
        k0: fan-in before any ablation.
        gamma: see `SRigLConfig`; 0 ablates nobody.

    Returns:
        The mask after the drop, and the new one.

    Source: Lasby et al. 2024, section 3.1, steps 1 to 7. The reference code cuts over-full neurons by
    sorting booleans, so the weights that go are arbitrary; here they are the smallest.
    """
    rows, w, g = mask.flatten(1), magnitude.flatten(1), gradient.flatten(1)
    dropped = smallest(w, exchanged, rows)
    kept = rows & ~dropped
    salient = (kept | largest(g, exchanged, ~rows)).sum(1)
    threshold = max(1, int(gamma * k0))
    active = salient >= threshold if gamma > 0 else torch.ones_like(salient, dtype=torch.bool)
    fewest = -(-budget // rows.shape[1])
    if int(active.sum()) < fewest:
        active |= largest(salient.float(), fewest, torch.ones_like(active))
    k = min(rows.shape[1], budget // int(active.sum()))
    kept &= active[:, None]
    over = kept.sum(1) > k
    if bool(over.any()):
        cut = _FAN_IN.fill(torch.zeros_like(kept), w.masked_fill(~kept, -1.0), k, neurons=over, allowed=kept)
        kept = torch.where(over[:, None], cut, kept)
    new = _FAN_IN.fill(kept, g, k, neurons=active)
    return kept.reshape(mask.shape), new.reshape(mask.shape)


class SRigL(SET):
    """Every neuron of a layer has the same number of live weights, or none; grown as in RigL.

    A layer has at most its budget and, as the fan-in is a whole number, up to one weight a neuron less.
    A neuron that is ablated has no weights; `halp_iee.condensed` leaves it and what it feeds out
    altogether.

    Source: Lasby et al. 2024, section 3.1. See `update_layer` and docs/methods/srigl.md.
    """

    Config = SRigLConfig
    config: SRigLConfig

    def _wanted_gradient(self) -> Gradient:
        return "all" if self._due() else "live"

    def active_neurons(self) -> dict[str, Tensor]:
        """Layer -> [rows] bool: the neurons that are not ablated."""
        return {name: _FAN_IN.active(mask) for name, mask in self.masks.items()}

    def _update(self) -> None:
        share = self.share()
        magnitudes, gradients = self.magnitudes(), self.gradients()
        pruned: Masks = {}
        masks: Masks = {}
        for layer in self.layers:
            name, budget = layer.name, self.budget[layer.name]
            pruned[name], masks[name] = update_layer(
                self.masks[name], magnitudes[name], gradients[name],
                exchanged=int(share * int(self.masks[name].sum())), budget=budget,
                k0=budget // layer.rows, gamma=self.config.gamma,
            )  # fmt: skip
        self._install(
            masks, pruned=pruned,
            active_neurons={name: int(_FAN_IN.active(mask).sum()) for name, mask in masks.items()},
        )  # fmt: skip

    def expected(self) -> dict[str, int]:
        live = {name: int(_FAN_IN.active(mask).sum()) for name, mask in self.masks.items()}
        columns = {layer.name: layer.columns for layer in self.layers}
        return {n: live[n] * min(columns[n], b // live[n]) for n, b in self.budget.items()}
