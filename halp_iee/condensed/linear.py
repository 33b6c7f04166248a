"""SRigL's condensed linear layer: values and indices, without the neurons that have no weights."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halp_iee.condensed.compiled import Weights, library
from halp_iee.condensed.layout import Rows, Tiles, rows_of, tiles_of
from halp_iee.errors import UsageError

_ONE_BY_ONE = 3
"""Up to so many samples are multiplied one after the other: their gathers cost less than padding to 8."""
_WORTH_TILING = 3.5
"""Slots a nonzero, above which a tile's empty slots cost more than plain loops do (very sparse layers)."""


class CondensedLinear(nn.Module):
    """A linear layer that stores and multiplies only its nonzero weights, [..., in] -> [..., out].

        y[b, n] = bias[n] + sum_k values[n, k] x[b, indices[n, k]]

    For inference: it has no gradients. On the CPU a compiled kernel computes it (see `kernel.c`), without a
    compiler torch's CSR product does, slower; on a GPU a Triton kernel. Constant fan-in is not required:
    rows may be of any length, and those of constant fan-in waste nothing.

    Args:
        weight: dense, [out, in], zeros where nothing is.
        bias: [out], or None.

    Raises:
        UsageError: the weight is not a matrix of floating-point numbers.

    Source: Lasby et al. 2024 (SRigL), section 4.4, algorithm 1 and appendix F.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.dim() != 2 or not weight.is_floating_point() or 0 in weight.shape:
            raise UsageError(
                "a layer cannot be condensed",
                f"its weight has the shape {tuple(weight.shape)} and the type {weight.dtype}",
                "pass the weight of a linear layer",
            )
        self.out_features, self.in_features = weight.shape
        rows = rows_of(weight.detach().float().cpu().numpy())
        self.register_buffer("start", torch.from_numpy(rows.start))
        self.register_buffer("values", torch.from_numpy(rows.values))
        index = rows.index.view(np.int16) if rows.index.dtype == np.uint16 else rows.index
        self.register_buffer("indices", torch.from_numpy(index.copy()))
        self.register_buffer("bias", None if bias is None else bias.detach().float().cpu().clone())
        self.start: Tensor
        self.values: Tensor
        self.indices: Tensor
        self.bias: Tensor | None
        self._kernel: _Kernel | None = None
        self._csr: Tensor | None = None
        self.to(weight.device)

    @classmethod
    def of(cls, layer: nn.Linear) -> CondensedLinear:
        """The condensed form of a linear layer whose dead weights are zero."""
        return cls(layer.weight, layer.bias)

    @property
    def nonzeros(self) -> int:
        return self.values.numel()

    @property
    def backend(self) -> str:
        """What computes it: `compiled`, `csr` (there is no compiler), or `triton`."""
        if self.values.is_cuda:
            return "triton"
        return "csr" if library() is None else "compiled"

    @property
    def bytes(self) -> int:
        """Of values and indices."""
        return self.values.numel() * self.values.element_size() + self.indices.numel() * self.indices.element_size()

    def _index(self) -> Tensor:
        """int64 columns of the nonzeros."""
        index = self.indices.long()
        return index & 0xFFFF if self.indices.dtype == torch.int16 else index

    def dense(self) -> Tensor:
        """The weight as a dense matrix, [out, in]."""
        weight = torch.zeros(self.out_features, self.in_features, device=self.values.device)
        row = torch.repeat_interleave(torch.arange(self.out_features, device=weight.device), self.start.diff())
        weight[row, self._index()] = self.values
        return weight

    def forward(self, x: Tensor) -> Tensor:
        kernel = self._kernel
        if (
            kernel is not None and x.dtype is torch.float32 and x.dim() == 2 and x.shape[1] == self.in_features
            and x.is_cpu and x.is_contiguous() and len(x)
        ):  # fmt: skip
            return kernel(x)  # at batch 1 every microsecond around the product counts
        if x.shape[-1] != self.in_features:
            raise UsageError(
                "a condensed layer cannot read its input",
                f"it has {x.shape[-1]} features and {self.in_features} are needed",
                "check the layer before it",
            )
        flat = x.reshape(-1, self.in_features)
        out = self._multiply(flat.detach().float().contiguous())
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _multiply(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            from halp_iee.condensed.gpu import multiply

            return multiply(x, self.start, self._index(), self.values, self.bias)
        if len(x) == 0:
            return x.new_zeros(0, self.out_features)
        if library() is None:
            return self._by_csr(x)
        if self._kernel is None:
            self._kernel = _Kernel(self)
        return self._kernel(x)

    def _by_csr(self, x: Tensor) -> Tensor:
        if self._csr is None:
            shape = (self.out_features, self.in_features)
            self._csr = torch.sparse_csr_tensor(self.start, self._index(), self.values, shape)
        y = (self._csr @ x.T).T
        return y if self.bias is None else y + self.bias

    def _apply(self, fn, recurse: bool = True):
        self._kernel = self._csr = None  # they point into tensors that are about to move
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        # Another weight of the same shape may have more nonzeros.
        for name in ("start", "values", "indices"):
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name]))
        self._kernel = self._csr = None
        super()._load_from_state_dict(state, prefix, *args)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kernel": None, "_csr": None}

    def extra_repr(self) -> str:
        density = self.nonzeros / (self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, density={density:.3f}"


class _Kernel:
    """A layer's weights where the compiled kernel finds them."""

    def __init__(self, layer: CondensedLinear) -> None:
        found = library()
        assert found is not None
        self.library = found
        start, values = layer.start.numpy(), layer.values.numpy()
        index = layer.indices.numpy()
        small = index.dtype == np.int16
        rows = Rows(start, index.view(np.uint16) if small else index, values, layer.in_features)
        tiles = tiles_of(rows) if small and found.condensed_has_tiles() else None
        if tiles is not None and tiles.values.size + tiles.rest_values.size > _WORTH_TILING * max(1, values.size):
            tiles = None
        self._alive = (rows, tiles, layer.bias)
        self.rows = layer.out_features
        self.weights = _structure(rows, tiles, layer.bias)
        self._address = ctypes.addressof(self.weights)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] float32, contiguous -> [N, out]."""
        samples = len(x)
        y = torch.empty(samples, self.rows)
        self.weights.threads = torch.get_num_threads()
        if samples <= _ONE_BY_ONE:
            for i in range(samples):
                row = x.shape[1] * 4 * i
                self.library.condensed_one(self._address, x.data_ptr() + row, y.data_ptr() + 4 * self.rows * i)
            return y
        lanes = next((n for n in (8, 16, 32) if samples <= n), 64)
        if self.library.condensed_many(self._address, x.data_ptr(), y.data_ptr(), samples, lanes):
            raise MemoryError("no memory for the transposed inputs of a condensed layer")
        return y


def _structure(rows: Rows, tiles: Tiles | None, bias: Tensor | None) -> Weights:
    weights = Weights(
        rows=rows.rows, columns=rows.columns, threads=1, bias=None if bias is None else bias.data_ptr(),
        start=rows.start.ctypes.data, values=rows.values.ctypes.data,
    )  # fmt: skip
    if rows.index.dtype == np.uint16:
        weights.index16 = rows.index.ctypes.data
    else:
        weights.index32 = rows.index.ctypes.data
    if tiles is not None:
        weights.tiles, weights.blocks = tiles.steps.shape
        for name, array in (
            ("steps", tiles.steps), ("first", tiles.first), ("slot_values", tiles.values),
            ("slot_index", tiles.index), ("rest", tiles.rest), ("rest_first", tiles.rest_first),
            ("rest_values", tiles.rest_values), ("rest_index", tiles.rest_index),
        ):  # fmt: skip
            setattr(weights, name, array.ctypes.data)
    return weights


def reference(x: Tensor, layer: CondensedLinear) -> Tensor:
    """What the layer computes, by a dense product."""
    return F.linear(x, layer.dense().to(x.dtype), layer.bias)
