"""SET: the smallest weights die, as many come back at random."""

from __future__ import annotations

from dataclasses import dataclass

from halp_iee.errors import UsageError
from halp_iee.methods.sparse.base import SparseConfig, SparseMethod
from halp_iee.methods.sparse.exchange import Masks, drop, grow
from halp_iee.sparsity.schedules import SCHEDULES


@dataclass(frozen=True)
class DropGrowConfig(SparseConfig):
    """Settings of methods that drop and grow in one update.

    Attributes:
        alpha: fraction of the live atoms that the first update exchanges.
        schedule: of that fraction down to 0 at `stop`: `cosine`, `constant` or `cubic`.
    """

    alpha: float = 0.3
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.alpha < 1.0:
            raise UsageError(
                f"an update cannot exchange {self.alpha:g} of the weights", "alpha must lie in (0, 1)", "give 0.3"
            )
        if self.schedule not in ("cosine", "constant", "cubic"):
            raise UsageError(
                f"unknown schedule {self.schedule!r} of alpha", "there are cosine, constant, cubic", "take cosine"
            )


class SET(SparseMethod):
    """Every `every` steps the fraction of smallest |w| dies in each layer, and as many come back at random.

    The mask update replaces the gradient step, and grown weights start at zero, as in RigL's comparison;
    the fraction falls by a cosine there too. The original keeps it at 0.3 (`schedule="constant"`) and
    updates once an epoch.

    Source: Mocanu et al. 2018, algorithm 2; RigL, section 4. See docs/methods/set.md.
    """

    Config = DropGrowConfig
    config: DropGrowConfig
    replaces_step = True

    def share(self) -> float:
        """Fraction of the live atoms that an update at this moment exchanges."""
        a = self.taken / max(1, self.last_update)
        return SCHEDULES[self.config.schedule](self.config.alpha, 0.0, a)

    def _growth_scores(self) -> Masks:
        return self.random_scores(salt=1)

    def _update(self) -> None:
        counts = self.fraction(self.share())
        pruned = drop(self.pattern, self.masks, self.magnitudes(), counts)
        self._install(grow(self.pattern, pruned, self._growth_scores(), counts), pruned=pruned)
