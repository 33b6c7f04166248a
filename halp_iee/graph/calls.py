"""The record of one run of a network: values, and the calls that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the tensor with this value id in a recorded call."""

    id: int


@dataclass(frozen=True, slots=True)
class Call:
    """One executed operation: its schema-bound arguments with tensors replaced by `Ref`."""

    index: int
    name: str
    args: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    module: str
    overload: str
    mutated: tuple[int, ...] = ()
    refs: tuple[Ref, ...] = field(init=False)

    def __post_init__(self) -> None:
        # They are asked for again and again.
        object.__setattr__(self, "refs", tuple(ref for value in self.args.values() for ref in refs_in(value)))


@dataclass
class Capture:
    """What one run of the network executed.

    Attributes:
        calls: the operations in order.
        shapes: shape of every value, by value id.
        active: whether a value depends on the network's inputs, by value id.
        sources: qualified names of the parameters and buffers that a value which does
            not depend on the inputs was computed from, by value id.
        kinds: dtype and device of every value, by value id.
        strides: of every value in memory, by value id.
        functions: position at which a Python-level function began, its name -> where it ended and
            what it returned, tensors replaced by `Ref`.
        sites: position of a call -> the place of the statistic that it belongs to (see `live`).
        tensors: value id of each parameter and buffer -> all its qualified names.
        literals: numbers that the network turned into tensors, in order.
        sized: whether a function ran that may be told a size, which may then fit by chance.
        plain: whether all that ran are layers of the library and functions that neither are told a size nor tell one.
        outputs: value ids of the tensors that the network returned.
        fake: whether it ran on fake tensors.
        first: index of the first call, so that two captures of one network can be told apart.
    """

    calls: list[Call] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    active: list[bool] = field(default_factory=list)
    sources: list[tuple[str, ...]] = field(default_factory=list)
    kinds: list[tuple[torch.dtype, torch.device]] = field(default_factory=list)
    strides: list[tuple[int, ...]] = field(default_factory=list)
    functions: dict[tuple[int, str], tuple[int, Any]] = field(default_factory=dict)
    sites: dict[int, tuple[str, int]] = field(default_factory=dict)
    tensors: dict[int, tuple[str, ...]] = field(default_factory=dict)
    literals: list[Any] = field(default_factory=list)
    sized: bool = False
    plain: bool = True
    outputs: tuple[int, ...] = ()
    fake: bool = True
    first: int = 0

    def live(self) -> set[int]:
        """Indices into `calls` of those whose results reach the outputs or something written in place."""
        wanted, found = set(self.outputs), set()
        for position in range(len(self.calls) - 1, -1, -1):
            call = self.calls[position]
            if call.mutated or wanted.intersection(value for value in call.outputs if value is not None):
                found.add(position)
                wanted.update(ref.id for ref in call.refs)
        return found


def refs_in(value: Any) -> list[Ref]:
    """The `Ref`s inside a recorded argument, in order."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, (list, tuple)):
        return [ref for item in value for ref in refs_in(item)]
    return []
