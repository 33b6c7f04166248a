"""Sizes that a module keeps as whole numbers of its own, such as ``num_heads`` or ``hidden_dim``.

A forward pass that reads such a number is not at odds with a smaller network: the number only has to follow.
Where the trial of a slim network fails, the numbers of the modules around that are equal to the size which was
expected there are bound to it, and the trial is run again; a binding that does not mend its place is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

MOST_PARTS = 12
"""A module with more parts than this keeps its own numbers."""

MOST_FACTOR = 4
"""A number is also tried as this many times a size, such as the width of queries, keys and values."""


@dataclass(frozen=True)
class Binding:
    """A number that is to follow a size.

    Attributes:
        module: qualified name of the module that has it.
        name: of the attribute.
        item: position in it where it is a tuple or list; -1 where it is a number.
        full: its value at full size.
        value, axis: the traced value and its axis whose size it follows.
        factor: the number is so many times the size.
    """

    module: str
    name: str
    item: int
    full: int
    value: int
    axis: int
    factor: int = 1

    @property
    def key(self) -> tuple[str, str, int]:
        return self.module, self.name, self.item


@dataclass(frozen=True)
class SizedAttribute:
    """A module's number and the units that it counts, `factor` times each.

    Attributes:
        group, unit: as in `AxisUnits`, of every position that is counted.
    """

    module: str
    name: str
    item: int
    full: int
    factor: int
    group: np.ndarray
    unit: np.ndarray

    def at(self, alive: Sequence[np.ndarray]) -> int:
        """Its value once only the living units are left."""
        pairs = zip(self.group.tolist(), self.unit.tolist(), strict=True)
        return self.factor * sum(1 for group, unit in pairs if group < 0 or alive[group][unit])


def numbers_of(module: nn.Module, least: int = 2) -> Iterator[tuple[str, int, int]]:
    """(name, item, value) of every whole number from `least` that a module keeps, alone or in a tuple or list."""
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if type(value) is int and value >= least:
            yield name, -1, value
        elif isinstance(value, (tuple, list)) and 0 < len(value) <= 8:
            for item, one in enumerate(value):
                if type(one) is int and one >= least:
                    yield name, item, one


def put_number(module: nn.Module, name: str, item: int, value: int) -> None:
    """Set a number, or one of a tuple or list of numbers."""
    if item < 0:
        setattr(module, name, value)
        return
    old = getattr(module, name)
    setattr(module, name, type(old)([*old[:item], value, *old[item + 1 :]]))


def matching(
    modules: Mapping[str, nn.Module], path: str, places: Sequence[tuple[int, int, int]], skip: tuple[type, ...]
) -> list[Binding]:
    """The numbers that could be meant where a size is wrong, the nearest module's first.

    Args:
        path: the module that was running.
        places: (full size, value, axis) of what is of another size there, the likeliest first.
        skip: module classes whose numbers are known to follow their weights.
    """
    found: list[Binding] = []
    while True:
        # A method of a part may run outside the part's own forward.
        parts = (
            [f"{path}.{name}" if path else name for name, _ in modules[path].named_children()]
            if path in modules
            else []
        )
        for owner in [path, *(parts if len(parts) <= MOST_PARTS else [])]:
            module = modules.get(owner)
            if module is None or isinstance(module, skip):
                continue
            # Several numbers in one are mostly sizes of windows and the like: a number alone comes first.
            numbers = sorted(numbers_of(module), key=lambda number: number[1] >= 0)
            for factor in range(1, MOST_FACTOR + 1):
                for full, value, axis in places:
                    found += [
                        Binding(owner, name, item, number, value, axis, factor)
                        for name, item, number in numbers
                        if number == factor * full
                    ]
        if not path:
            return found
        path = path.rpartition(".")[0]
