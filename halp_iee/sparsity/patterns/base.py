"""What a pattern is: which sets of weights may live together, and how they are dropped and grown."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from halp_iee.errors import UsageError
from halp_iee.sparsity.layers import SparseLayer
from halp_iee.sparsity.topk import largest, smallest


class Pattern(ABC):
    """A constraint on the mask of one layer. Masks are bool tensors of the weight's shape.

    Budgets are counted in atoms: the smallest set of weights that lives or dies together.

    Attributes:
        name: as a person writes it.
        independent: whether any set of atoms is allowed, so that atoms of different layers can be ranked
            against one another and any number of them can be dropped.
        density: the only density that the pattern has, e.g. 0.5 for 2:4; None: any.
    """

    name: str
    independent: bool = False
    density: float | None = None

    @abstractmethod
    def check(self, layer: SparseLayer) -> None:
        """Raise UsageError, naming the layer, if its shape cannot carry the pattern."""

    @abstractmethod
    def atoms(self, layer: SparseLayer, nonzeros: int) -> int:
        """The budget in atoms that comes nearest to `nonzeros` weights.

        Raises:
            UsageError: the pattern cannot have so few or so many; names the layer.
        """

    def weights_an_atom(self, layer: SparseLayer) -> int:
        """Live weights of one live atom."""
        return 1

    def used(self, layer: SparseLayer, budget: int) -> int:
        """How many atoms of a budget the pattern can put to use."""
        return budget

    @abstractmethod
    def count(self, mask: Tensor) -> int:
        """Atoms that live."""

    @abstractmethod
    def drop(self, mask: Tensor, scores: Tensor, n: int) -> Tensor:
        """The mask without its `n` live atoms of least score."""

    @abstractmethod
    def grow(self, mask: Tensor, scores: Tensor, n: int, allowed: Tensor | None = None) -> Tensor:
        """The mask with the `n` dead atoms of greatest score, of those that lie in `allowed`."""

    @abstractmethod
    def holds(self, mask: Tensor) -> bool:
        """Whether the mask satisfies the pattern."""

    def cannot(self, layer: SparseLayer, why: str, remedy: str) -> UsageError:
        """The error that says that a layer cannot carry the pattern."""
        return UsageError(f"layer {layer.name!r} cannot have the pattern {self.name}", why, remedy)


class IndependentPattern(Pattern):
    """A pattern whose atoms are disjoint and live or die one by one.

    A subclass says how weights are pooled into atoms and spread from them.
    """

    independent = True

    @abstractmethod
    def pool(self, scores: Tensor) -> Tensor:
        """Scores of the atoms, flat."""

    @abstractmethod
    def spread(self, atoms: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Flat bool a atom -> bool a weight."""

    def alive(self, mask: Tensor) -> Tensor:
        """Flat bool a atom: whether any weight of it lives."""
        return self.pool(mask.float()) > 0

    def available(self, mask: Tensor, allowed: Tensor | None) -> Tensor:
        """Flat bool a atom: dead, and all of it allowed."""
        dead = ~self.alive(mask)
        return dead if allowed is None else dead & (self.pool((~allowed).float()) == 0)

    def count(self, mask: Tensor) -> int:
        return int(self.alive(mask).sum())

    def drop(self, mask: Tensor, scores: Tensor, n: int) -> Tensor:
        alive = self.alive(mask)
        return self.spread(alive & ~smallest(self.pool(scores), n, alive), mask.shape)

    def grow(self, mask: Tensor, scores: Tensor, n: int, allowed: Tensor | None = None) -> Tensor:
        grown = largest(self.pool(scores), n, self.available(mask, allowed))
        return self.spread(self.alive(mask) | grown, mask.shape)

    def holds(self, mask: Tensor) -> bool:
        return bool(torch.equal(self.spread(self.alive(mask), mask.shape), mask))
