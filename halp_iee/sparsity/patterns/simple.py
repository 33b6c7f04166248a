"""Patterns whose atoms tile the weight: single weights, blocks of the weight matrix, whole channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halp_iee.errors import UsageError
from halp_iee.sparsity.layers import SparseLayer
from halp_iee.sparsity.patterns.base import IndependentPattern


@dataclass(frozen=True)
class Unstructured(IndependentPattern):
    """Any set of weights."""

    name: str = "unstructured"

    def check(self, layer: SparseLayer) -> None:
        pass

    def atoms(self, layer: SparseLayer, nonzeros: int) -> int:
        return nonzeros

    def pool(self, scores: Tensor) -> Tensor:
        return scores.reshape(-1)

    def spread(self, atoms: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return atoms.reshape(shape)


@dataclass(frozen=True)
class Block(IndependentPattern):
    """Blocks of `rows` output channels by `columns` columns of the weight as a matrix [outputs, fan-in].

    A block's score is the L2 norm of its weights' scores. MEST's block is 4 x 1.

    Source: MEST, section 5 and appendix A.
    """

    rows: int = 4
    columns: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise UsageError(
                f"there are no blocks of {self.rows} x {self.columns}", "both sides must be at least 1",
                "write for example 4x1",
            )  # fmt: skip

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.rows}x{self.columns}"

    def check(self, layer: SparseLayer) -> None:
        if layer.transposed:
            raise self.cannot(layer, "a transposed convolution's rows are its inputs", "exclude the layer")
        if layer.rows % self.rows or layer.columns % self.columns:
            raise self.cannot(
                layer,
                f"its weight matrix is {layer.rows} x {layer.columns}, which blocks of {self.name} do not tile",
                "exclude the layer or choose a block that divides it",
            )

    def atoms(self, layer: SparseLayer, nonzeros: int) -> int:
        return max(1, round(nonzeros / self.weights_an_atom(layer)))

    def weights_an_atom(self, layer: SparseLayer) -> int:
        return self.rows * self.columns

    def pool(self, scores: Tensor) -> Tensor:
        return self._tiles(scores.float().square()).sum((1, 3)).sqrt().reshape(-1)

    def _tiles(self, tensor: Tensor) -> Tensor:
        matrix = tensor.flatten(1)
        R, C = matrix.shape
        return matrix.reshape(R // self.rows, self.rows, C // self.columns, self.columns)

    def spread(self, atoms: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        R = shape[0] // self.rows
        tiles = atoms.reshape(R, 1, -1, 1).expand(-1, self.rows, -1, self.columns)
        return tiles.reshape(shape).contiguous()


@dataclass(frozen=True)
class Channel(IndependentPattern):
    """Whole output channels (filters, neurons). A channel's score is the mean over its weights."""

    name: str = "channel"

    def check(self, layer: SparseLayer) -> None:
        if layer.transposed:
            raise self.cannot(layer, "a transposed convolution's rows are its inputs", "exclude the layer")

    def atoms(self, layer: SparseLayer, nonzeros: int) -> int:
        return max(1, round(nonzeros / layer.columns))

    def weights_an_atom(self, layer: SparseLayer) -> int:
        return layer.columns

    def pool(self, scores: Tensor) -> Tensor:
        return scores.float().flatten(1).mean(1)

    def spread(self, atoms: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return atoms.reshape(-1, *(1,) * (len(shape) - 1)).expand(shape).contiguous()
