"""The frozen records that describe a traced network: units, groups, widths, operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Keep = Mapping[str, Sequence[int] | np.ndarray]
"""Group name -> indices of the units that are kept. A group that is not named is kept whole."""


@dataclass(frozen=True)
class ChannelGroup:
    """Units that are kept or removed together across layers.

    Any non-empty subset of a group's units may be kept, independently for every
    group, and the slim network runs.

    Attributes:
        name: unique and stable for one network; the first producing layer's qualified name.
        size: number of units.
        layers: qualified names of the modules (or parameters) that carry the group's channels.
        prunable: whether units may be removed at all.
        reason: why not, in words a person understands; None when prunable.
    """

    name: str
    size: int
    layers: tuple[str, ...]
    prunable: bool
    reason: str | None = None


@dataclass(frozen=True)
class Width:
    """How many channels live on one tensor axis, as an affine function of the groups' widths.

    ``channels(widths) = fixed + sum_g per_unit_g * widths[g]``, a group that is not in
    ``widths`` counting with its full size.

    Attributes:
        terms: (group name, group size, channels that one unit of the group has on this axis).
        fixed: channels that belong to no group.
    """

    terms: tuple[tuple[str, int, int], ...] = ()
    fixed: int = 0

    def __call__(self, widths: Mapping[str, int]) -> int:
        return self.fixed + sum(per * int(widths.get(name, size)) for name, size, per in self.terms)

    @property
    def full(self) -> int:
        """Channels when every group is whole."""
        return self.fixed + sum(size * per for _, size, per in self.terms)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.terms)

    def times(self, factor: int) -> Width:
        """So many times the channels."""
        return Width(tuple((name, size, per * factor) for name, size, per in self.terms), self.fixed * factor)

    def divisible(self, parts: int) -> bool:
        """Whether it is so many equal parts, whatever is kept."""
        return self.fixed % parts == 0 and all(per % parts == 0 for _, _, per in self.terms)

    def part(self, parts: int) -> Width:
        """The channels of one of so many equal parts."""
        return Width(tuple((name, size, per // parts) for name, size, per in self.terms), self.fixed // parts)


@dataclass(frozen=True)
class Op:
    """One operation that the network really executed, in execution order.

    Attributes:
        index: position in the execution.
        kind: family, e.g. ``conv``, ``linear``, ``matmul``, ``batch_norm``, ``layer_norm``,
            ``activation``, ``add``, ``mul``, ``cat``, ``max_pool``, ``avg_pool``,
            ``global_pool``, ``softmax``, ``interpolate``, ``view``, ``other``.
        name: what ran, e.g. ``aten.convolution.default``.
        module: qualified name of the innermost module that ran it; "" for the root.
        inputs: ids of the activation tensors read (parameters and constants left out).
        outputs: ids of the tensors made. An id names a value, so an in-place
            operation makes a new id.
        in_shape: shape of the first activation input.
        out_shape: shape of the first output.
        c_in: channels on the input's channel axis (axis 1 of convolutions and 4-D
            tensors, the last axis of linear layers).
        c_out: channels on the output's channel axis.
        params: qualified names of the parameters and buffers read.
        attrs: for convolutions ``kernel_size stride padding dilation output_padding
            groups transposed bias``, and ``keeps_groups`` where the number of groups
            stays whatever is kept; for activations ``function``; for pools
            ``kernel_size stride padding``.
    """

    index: int
    kind: str
    name: str
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    c_in: Width
    c_out: Width
    params: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
