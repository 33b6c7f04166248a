"""RigL: SET with one function replaced. Weights come back where the dense gradient is largest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halp_iee.errors import UsageError
from halp_iee.methods.sparse.base import Gradient, summed
from halp_iee.methods.sparse.exchange import Masks
from halp_iee.methods.sparse.set import SET, DropGrowConfig


@dataclass(frozen=True)
class RigLConfig(DropGrowConfig):
    """RigL's settings.

    Attributes:
        gradient_batches: the dense gradient that grows weights is summed over so many batches, that of the update
            and those before it; at most `every`. 1 is the published one, of batches of 128 to 4096 images. With small
            batches the gradient of one is mostly noise, and what is grown by it is chosen by chance.
    """

    gradient_batches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.gradient_batches <= self.every:
            raise UsageError(
                f"RigL cannot sum the gradients of {self.gradient_batches} batches",
                f"an update comes every {self.every} steps, and each has gradients of its own",
                f"give 1 to {self.every}",
            )


class RigL(SET):
    """As SET, but what grows are the weights of largest |g| of the dense gradient.

    K = int(live * alpha / 2 (1 + cos(pi t / T_end))) of each layer, alpha = 0.3, Delta T = 100, T_end = 3/4
    of the training. A weight that was dropped may be grown in the same update, and then keeps its value
    and its optimizer state. Over several processes the gradients are summed before the absolute value is
    taken. With `distribution="global"` one ranking over all layers decides (Chase's global exploration).
    With `gradient_batches` above 1 the gradient is summed over the batches before the update, too: a dense backward
    pass and the memory of one more gradient of the sparse layers for each; what is trained and clipped stays as it is.

    Source: Evci et al. 2020, section 3 and algorithm 1. See docs/methods/rigl.md.
    """

    Config = RigLConfig
    config: RigLConfig

    def _set_up_budget(self) -> None:
        super()._set_up_budget()
        self._sums: Masks = {}
        self._step: Masks = {}

    def _wanted_gradient(self) -> Gradient:
        return "all" if self._due() else "live"

    def _growth_scores(self) -> Masks:
        if self.config.gradient_batches == 1:
            return self.gradients()
        scores, self._sums = {name: total.abs() for name, total in self._sums.items()}, {}
        return scores

    # Gradients of several batches

    def _summing(self) -> bool:
        """Whether the coming batch is one of those whose gradient the next update looks at."""
        every = self.config.every
        update = -(-max(1, self.taken) // every) * every
        return update <= self.last_update and update - self.taken < self.config.gradient_batches

    def _gradient_hook(self, name: str) -> Callable[[Tensor], Tensor]:
        hold = super()._gradient_hook(name)

        def add_and_hold(grad: Tensor) -> Tensor:
            # Here, and not from the parameter's own gradient: that one is for training, and is clipped.
            if self.config.gradient_batches > 1 and self._summing():
                seen = grad.detach()
                self._step[name] = self._step[name] + seen if name in self._step else seen.clone()
            return hold(grad)

        return add_and_hold

    @torch.no_grad()
    def before_step(self) -> bool | None:
        if self.config.gradient_batches > 1 and self._summing():
            for layer in self.layers:  # in this order in every process, whatever the order of their backward passes
                own = self._step.pop(layer.name, None)
                seen = self.gradient(layer.name) if own is None else summed(own)
                self._sums[layer.name] = self._sums[layer.name] + seen if layer.name in self._sums else seen
        return super().before_step()

    # Checkpoints

    def _tensor_groups(self) -> dict[str, dict[str, Tensor]]:
        groups = super()._tensor_groups()
        return {**groups, "gradient": dict(self._sums)} if self._sums else groups

    def _load(self, groups: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        super()._load(groups, meta)
        self._sums, self._step = (self._there(groups["gradient"]) if "gradient" in groups else {}), {}
