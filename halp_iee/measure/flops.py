"""Multiply-accumulates and parameters of a traced network at any widths.

Counted are convolutions, linear layers, matrix products and attention: where the arithmetic is. A
multiply-accumulate (MAC) is one multiplication and one addition; FLOPs are twice the MACs, and nothing
else is added. Normalisation, activations, pooling and additions count as nothing, as is the custom.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from halp_iee.graph.records import ChannelGroup, Op, Width


class TracedNetwork(Protocol):
    """The part of a ``ChannelGraph`` that counting needs."""

    @property
    def groups(self) -> Sequence[ChannelGroup]: ...
    @property
    def ops(self) -> Sequence[Op]: ...
    @property
    def axes(self) -> Mapping[str, Sequence[Any]]: ...
    @property
    def model(self) -> Any: ...
    @property
    def example_inputs(self) -> Any: ...


@dataclass(frozen=True)
class LayerCount:
    """One counted operation: where it ran, its kind, its MACs for one sample."""

    module: str
    kind: str
    macs: int


@dataclass(frozen=True)
class Counts:
    """What one forward pass of one sample takes.

    Attributes:
        macs: multiply-accumulates.
        flops: 2 * macs.
        params: elements of all parameters; a shared one counts once.
        layers: the operations that macs is the sum of, in the order of execution.
        uncounted: (name, how often) of operations of an unknown kind that read a weight matrix.
    """

    macs: int
    flops: int
    params: int
    layers: tuple[LayerCount, ...] = ()
    uncounted: tuple[tuple[str, int], ...] = ()


def count(graph: TracedNetwork, widths: Mapping[str, int] | None = None) -> Counts:
    """MACs and parameters with ``widths`` units kept; a group that is not named is whole.

    A convolution does one MAC for each weight at each output position (at each input position when it
    is transposed), a linear layer one for each weight and row, so both follow from the size of the
    weight at these widths. MACs are for one sample: the trace's total over its batch.
    """
    sizes = _Sizes(graph, dict(widths or {}))
    batch = _batch(graph)
    layers, uncounted = [], Counter[str]()
    for op in graph.ops:
        rule = _RULES.get(op.kind)
        if rule is None:
            if op.kind == "other" and any(len(sizes.full.get(name, ())) >= 2 for name in op.params):
                uncounted[op.name] += 1
            continue
        layers.append(LayerCount(op.module, op.kind, round(rule(op, sizes) / batch)))
    macs = sum(layer.macs for layer in layers)
    params = sum(sizes.numel(name) for name, _ in graph.model.named_parameters())
    return Counts(macs, 2 * macs, params, tuple(layers), tuple(sorted(uncounted.items())))


class _Sizes:
    """Shapes of the parameters at the given widths."""

    def __init__(self, graph: TracedNetwork, widths: dict[str, int]) -> None:
        self.widths = widths
        named = (*graph.model.named_parameters(remove_duplicate=False), *graph.model.named_buffers())
        self.full: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in named}
        self._axes = graph.axes
        self._groups = graph.groups

    def shape(self, name: str) -> tuple[int, ...]:
        full = self.full[name]
        axes = self._axes.get(name) or (None,) * len(full)
        return tuple(size if axis is None else self._kept(axis) for size, axis in zip(full, axes, strict=True))

    def numel(self, name: str) -> int:
        return math.prod(self.shape(name))

    def _kept(self, axis: Any) -> int:
        """Positions left on an axis: those of no group, and of each group its share, units being equal."""
        group = np.asarray(axis.group)
        kept = int((group < 0).sum())
        for index, positions in zip(*np.unique(group[group >= 0], return_counts=True), strict=True):
            record = self._groups[int(index)]
            width = self.widths.get(record.name, record.size)
            kept += int(positions) * width // record.size
        return kept

    def weight(self, op: Op, dims: int) -> str | None:
        """The weight among what the operation reads: the one parameter with that many axes."""
        found = [name for name in op.params if len(self.full.get(name, ())) == dims]
        return found[0] if len(found) == 1 else None


def _conv(op: Op, sizes: _Sizes) -> float:
    kernel = tuple(op.attrs["kernel_size"])
    transposed = bool(op.attrs.get("transposed"))
    positions = _positions(op.in_shape if transposed else op.out_shape, len(kernel))
    name = sizes.weight(op, len(kernel) + 2)
    if name is not None:
        return float(positions * sizes.numel(name))
    # The weight was computed (weight standardisation, for one): its size follows from the channels. Where whole
    # groups of a grouped convolution are kept or removed, the channels that one group reads stay.
    groups = int(op.attrs.get("groups", 1))
    whole = groups > 1 and not op.attrs.get("keeps_groups")
    fan_in = op.c_in.full // groups if whole else op.c_in(sizes.widths) // groups
    return float(positions * op.c_out(sizes.widths) * fan_in * math.prod(kernel))


def _positions(shape: tuple[int, ...], spatial: int) -> int:
    """Batch times spatial positions of a channels-first tensor, which may come without a batch."""
    batch = math.prod(shape[: len(shape) - spatial - 1])
    return batch * math.prod(shape[len(shape) - spatial :])


def _linear(op: Op, sizes: _Sizes) -> float:
    name = sizes.weight(op, 2)
    rows = math.prod(op.out_shape[:-1])
    if name is not None:
        return float(rows * sizes.numel(name))
    return float(rows * op.c_in(sizes.widths) * op.c_out(sizes.widths))


def _matmul(op: Op, sizes: _Sizes) -> float:
    """``(..., n, k) x (..., k, m)``: n m k for each matrix, scaled by the share of channels left."""
    name = sizes.weight(op, 2)
    if name is not None:
        return _linear(op, sizes)
    return math.prod(op.out_shape) * op.in_shape[-1] * _left(op, sizes.widths)


def _attention(op: Op, sizes: _Sizes) -> float:
    """Scores and weighted sum: ``heads n m (d_qk + d_v)``; as many keys m as queries unless noted."""
    *lead, queries, depth = op.in_shape
    keys = int(op.attrs.get("keys", queries))
    return math.prod(lead) * queries * keys * (depth + op.out_shape[-1]) * _left(op, sizes.widths)


def _left(op: Op, widths: Mapping[str, int]) -> float:
    """Share of the channels left; products of two activations shrink once, by the axis that shrinks most."""
    shares: list[float] = [_share(op.c_in, widths), _share(op.c_out, widths)]
    return min(shares)


def _share(width: Width, widths: Mapping[str, int]) -> float:
    return width(widths) / width.full if width.full else 1.0


def _batch(graph: TracedNetwork) -> int:
    """Leading size of the first tensor that went in."""
    stack = [graph.example_inputs]
    while stack:
        item = stack.pop(0)
        if hasattr(item, "shape"):
            return int(item.shape[0]) if len(item.shape) else 1
        if isinstance(item, Mapping):
            stack[:0] = list(item.values())
        elif isinstance(item, (tuple, list)):
            stack[:0] = list(item)
    return 1


_RULES: dict[str, Callable[[Op, _Sizes], float]] = {
    "conv": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "attention": _attention,
}
