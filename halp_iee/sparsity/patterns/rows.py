"""Patterns that constrain how many weights live together: N of M neighbours, constant fan-in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halp_iee.errors import UsageError
from halp_iee.sparsity.layers import SparseLayer
from halp_iee.sparsity.patterns.base import Pattern
from halp_iee.sparsity.topk import largest_in_rows, smallest


@dataclass(frozen=True)
class NofM(Pattern):
    """At most N of every M neighbours along the input channels live; at its full budget exactly N.

    For a convolution the neighbours are M input channels at one kernel position, which is how the hardware
    reads them (the weight as a matrix with the channels last).

    Source: Mishra et al. 2021; IEE, appendix section 2.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise UsageError(
                f"there is no pattern {self.n}:{self.m}", "N of M neighbours live, with 0 < N < M", "write 2:4"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:  # type: ignore[override]
        return self.n / self.m

    def check(self, layer: SparseLayer) -> None:
        if layer.transposed:
            raise self.cannot(layer, "a transposed convolution's input channels come first", "exclude the layer")
        if layer.shape[1] % self.m:
            raise self.cannot(
                layer, f"its {layer.shape[1]} input channels are no multiple of {self.m}", "exclude the layer"
            )

    def atoms(self, layer: SparseLayer, nonzeros: int) -> int:
        only = layer.numel // self.m * self.n
        if nonzeros != only:
            raise self.cannot(
                layer, f"{nonzeros} of {layer.numel} weights are to live and the pattern leaves {only}",
                f"ask for a sparsity of {1 - self.density:g} with a uniform distribution",
            )  # fmt: skip
        return only

    def _groups(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).reshape(-1, self.m)

    def _back(self, groups: Tensor, shape: torch.Size) -> Tensor:
        return groups.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()

    def count(self, mask: Tensor) -> int:
        return int(mask.sum())

    def drop(self, mask: Tensor, scores: Tensor, n: int) -> Tensor:
        return mask & ~smallest(scores, n, mask)

    def grow(self, mask: Tensor, scores: Tensor, n: int, allowed: Tensor | None = None) -> Tensor:
        """Fill every group up to N; `n` is what that comes to, and is not looked at."""
        groups = self._groups(mask)
        free = ~groups if allowed is None else ~groups & self._groups(allowed)
        grown = largest_in_rows(self._groups(scores), self.n - groups.sum(1), free)
        return self._back(groups | grown, mask.shape)

    def holds(self, mask: Tensor) -> bool:
        return bool((self._groups(mask).sum(1) <= self.n).all())


@dataclass(frozen=True)
class FanIn(Pattern):
    """Every neuron has the same number of live weights, or none: constant fan-in with neuron ablation.

    The budget is a number of weights; k = budget // active neurons of them are used by each, so what is
    left over, less than one weight a neuron, stays unused.

    Source: SRigL, section 3.1.
    """

    name: str = "fan-in"

    def check(self, layer: SparseLayer) -> None:
        if layer.transposed:
            raise self.cannot(layer, "a transposed convolution's rows are its inputs", "exclude the layer")

    def atoms(self, layer: SparseLayer, nonzeros: int) -> int:
        if nonzeros < layer.rows:
            raise self.cannot(
                layer,
                f"{nonzeros} weights are to live in {layer.rows} neurons, less than one each",
                "lower the sparsity, or take another distribution",
            )
        return nonzeros

    def used(self, layer: SparseLayer, budget: int) -> int:
        return budget - budget % layer.rows

    def count(self, mask: Tensor) -> int:
        return int(mask.sum())

    def active(self, mask: Tensor) -> Tensor:
        """[rows] bool: the neurons that are not ablated."""
        return mask.flatten(1).any(1)

    def drop(self, mask: Tensor, scores: Tensor, n: int) -> Tensor:
        return mask & ~smallest(scores, n, mask)

    def grow(self, mask: Tensor, scores: Tensor, n: int, allowed: Tensor | None = None) -> Tensor:
        """Fill every neuron up to k = (live + n) // neurons."""
        rows = mask.flatten(1)
        return self.fill(mask, scores, (int(rows.sum()) + n) // len(rows), allowed=allowed)

    def fill(
        self, mask: Tensor, scores: Tensor, k: int, *, neurons: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """The mask with every one of `neurons` ([rows] bool; None: all) grown to k weights by score."""
        rows = mask.flatten(1)
        wanted = torch.ones(len(rows), dtype=torch.bool, device=mask.device) if neurons is None else neurons
        free = ~rows if allowed is None else ~rows & allowed.flatten(1)
        missing = (k - rows.sum(1)).clamp(min=0) * wanted
        grown = largest_in_rows(scores.flatten(1), missing, free)
        return (rows | grown).reshape(mask.shape)

    def holds(self, mask: Tensor) -> bool:
        counts = mask.flatten(1).sum(1)
        live = counts[counts > 0]
        return bool((live == live[:1]).all())
