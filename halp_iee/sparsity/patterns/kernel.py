"""MEST's pattern sparsity: a 3x3 kernel is dead, or has one of eight shapes of four weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halp_iee.errors import UsageError
from halp_iee.sparsity.layers import SparseLayer, checked_sparsity
from halp_iee.sparsity.patterns.base import Pattern
from halp_iee.sparsity.topk import largest, smallest

# The centre and three of its neighbours: the four 2x2 corners, which approximate a Gaussian, and the four
# T shapes, which approximate the Laplacian of one.
_SHAPES = (
    "110110000", "011011000", "000110110", "000011011",
    "010111000", "010110010", "010011010", "000111010",
)  # fmt: skip
SHAPES = torch.tensor([[int(c) for c in shape] for shape in _SHAPES], dtype=torch.bool)
"""[8, 9] bool."""

ENTRIES = 4


def kernel_sparsity(sparsity: float, *, as_published: bool = False) -> float:
    """Fraction of kernels that must die for the layer to have a weight sparsity.

    A live kernel has 4 of 9 weights: `1 - (1 - s) 9 / 4`.

    Args:
        sparsity: of the weights, at least 5/9 = 55.6%.
        as_published: convert as MEST's reference code does, twice: 90% asked for becomes 77.5%, which is
            then taken for the sparsity of the weights, and 49.4% of the kernels die.

    Raises:
        UsageError: a sparsity that the shapes cannot have.

    Source: MEST, section 5.1 and appendix A.
    """
    checked_sparsity(sparsity)
    if as_published:
        return max(0.0, 1 - (1 - sparsity) * (9 / 4) ** 2)
    if sparsity < 1 - ENTRIES / 9 - 1e-12:
        raise UsageError(
            f"a sparsity of {sparsity:g} cannot be had with kernel patterns",
            "a live 3x3 kernel keeps 4 of its 9 weights, so the least sparsity is 5/9 = 0.556",
            "ask for at least 0.556, or take another pattern",
        )
    return 1 - (1 - sparsity) * 9 / 4


@dataclass(frozen=True)
class KernelPattern(Pattern):
    """Every 3x3 kernel is dead or has one of eight shapes; the atom is the kernel.

    A kernel that grows takes the shape with the greatest sum of scores, and keeps it while it lives.

    Source: MEST, section 5; the shapes are those of Ma et al. 2020 (PCONV), the four corners and the four
    T shapes around the centre.
    """

    name: str = "kernel"
    independent = False

    def check(self, layer: SparseLayer) -> None:
        if layer.kind != "conv" or layer.shape[2:] != (3, 3):
            size = "x".join(map(str, layer.shape[2:])) or "no"
            raise self.cannot(layer, f"it has {size} kernels and the eight shapes are for 3x3", "exclude the layer")

    def atoms(self, layer: SparseLayer, nonzeros: int) -> int:
        kernels = layer.numel // 9
        if nonzeros > kernels * ENTRIES:
            raise self.cannot(
                layer,
                f"{nonzeros} of {layer.numel} weights are to live and the shapes leave at most {kernels * ENTRIES}",
                "ask for a sparsity of at least 0.556",
            )
        return max(1, round(nonzeros / ENTRIES))

    def weights_an_atom(self, layer: SparseLayer) -> int:
        return ENTRIES

    def _kernels(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, 9)

    def count(self, mask: Tensor) -> int:
        return int(self._kernels(mask).any(1).sum())

    def drop(self, mask: Tensor, scores: Tensor, n: int) -> Tensor:
        kernels = self._kernels(mask)
        alive = kernels.any(1)
        worth = (self._kernels(scores).float() * kernels).sum(1)
        return (kernels & ~smallest(worth, n, alive)[:, None]).reshape(mask.shape)

    def grow(self, mask: Tensor, scores: Tensor, n: int, allowed: Tensor | None = None) -> Tensor:
        kernels = self._kernels(mask)
        free = ~kernels.any(1)
        if allowed is not None:
            free &= self._kernels(allowed).all(1)
        shapes = SHAPES.to(mask.device)
        worth, shape = (self._kernels(scores).float() @ shapes.float().T).max(1)
        grown = largest(worth, n, free)
        return (kernels | (shapes[shape] & grown[:, None])).reshape(mask.shape)

    def holds(self, mask: Tensor) -> bool:
        kernels = self._kernels(mask)
        live = kernels[kernels.any(1)]
        shapes = SHAPES.to(mask.device)
        return bool((live[:, None, :] == shapes[None]).all(2).any(1).all())
