"""Whole numbers that know where they come from.

In the trial of a slim network every size that is read from a tensor's shape, and every whole number that a module
keeps, is such a number, and so is what is computed from them. Where a call is told a size that does not fit, this
tells which axis or which module's number it was taken from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halp_iee.graph.attributes import numbers_of, put_number
from halp_iee.graph.sandbox import walk


@dataclass(frozen=True, slots=True)
class OfAxis:
    """The size of an axis of a value of the full network's run."""

    value: int
    axis: int


@dataclass(frozen=True, slots=True)
class OfModule:
    """A number that a module keeps; `item` as in `attributes.Binding`."""

    module: str
    name: str
    item: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.module, self.name, self.item


@dataclass(frozen=True, slots=True)
class Computed:
    """What an operation, ``+ - * //``, made of two numbers."""

    operation: str
    left: Origin
    right: Origin


Origin = OfAxis | OfModule | Computed | int
"""An `int` is a number that was written down, or whose origin was lost."""


def leaves(origin: Origin) -> Iterator[Origin]:
    """Everything that an origin was computed from."""
    if isinstance(origin, Computed):
        yield from leaves(origin.left)
        yield from leaves(origin.right)
    else:
        yield origin


def origin_of(value: int) -> Origin:
    return value.origin if isinstance(value, Traced) else value


class Traced(int):
    """A whole number with its origin."""

    origin: Origin

    def __new__(cls, value: int, origin: Origin) -> Traced:
        made = super().__new__(cls, value)
        made.origin = origin
        return made

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> Traced:
        return self


def _operator(name: str, symbol: str, swapped: bool) -> Callable[[Traced, Any], Any]:
    plain = getattr(int, name)

    def compute(self: Traced, other: Any) -> Any:
        made = plain(self, other)
        if type(made) is not int or isinstance(other, bool):
            return made
        first, second = (other, self) if swapped else (self, other)
        return Traced(made, Computed(symbol, origin_of(first), origin_of(second)))

    return compute


for _name, _symbol in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//")):
    setattr(Traced, f"__{_name}__", _operator(f"__{_name}__", _symbol, False))
    setattr(Traced, f"__r{_name}__", _operator(f"__r{_name}__", _symbol, True))


SHAPES = frozenset({Tensor.shape.__get__, Tensor.size})  # type: ignore[attr-defined]
"""Functions that tell the sizes of a tensor."""


def traced_shape(result: Any, value: int, args: tuple[Any, ...]) -> Any:
    """What a function of `SHAPES` gave, with its origin.

    Args:
        value: id of the tensor.
        args: of the function.
    """
    if isinstance(result, torch.Size):
        return torch.Size([Traced(size, OfAxis(value, axis)) for axis, size in enumerate(result)])
    if type(result) is int and len(args) > 1 and isinstance(args[1], int):
        axis = args[1] if args[1] >= 0 else args[1] + args[0].dim()
        return Traced(result, OfAxis(value, int(axis)))
    return result


def trace_numbers(model: nn.Module, skip: tuple[type, ...]) -> None:
    """Give the whole numbers that a copy's modules keep their origins.

    Args:
        model: changed in place.
        skip: module classes whose numbers are known to follow their weights.
    """
    skip, done = (*skip, torch.jit.ScriptModule), set()
    for path, module in walk(model):
        if id(module) in done or isinstance(module, skip):
            continue
        done.add(id(module))
        for name, item, number in list(numbers_of(module, least=1)):
            put_number(module, name, item, Traced(number, OfModule(path, name, item)))
