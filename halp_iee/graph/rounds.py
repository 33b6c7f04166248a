"""One round of the search for a structure: what the labels say, and what the slim network made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from halp_iee.graph.calls import Call
from halp_iee.graph.labels import Axis, Labels
from halp_iee.graph.origins import Origin
from halp_iee.graph.replay import Failure

Place = tuple[int, str]
"""Where a failure is, comparable from round to round: index of the call or -1, the module."""

Spot = tuple[int, int]
"""A value and one of its axes."""


@dataclass(frozen=True)
class Round:
    """What learning from failures looks at.

    Attributes:
        labels: of the first capture.
        shapes: the shape of every value once the trial's units are left.
        modules: of the network, by qualified name.
        decisions: the options taken.
    """

    labels: Labels
    shapes: Mapping[int, tuple[int, ...]]
    modules: Mapping[str, nn.Module]
    decisions: Mapping[tuple[int, int], int]

    def axis(self, spot: Spot) -> Axis | None:
        label = self.labels.of[spot[0]]
        return None if label is None else label[spot[1]]

    def sizes(self, spot: Spot) -> tuple[int, int]:
        """(full, slim) size of an axis."""
        return self.labels.capture.shapes[spot[0]][spot[1]], self.shapes[spot[0]][spot[1]]

    def option(self, place: Place) -> int:
        """Which options are taken at the call of a failure."""
        return sum((1 + taken) * 7**part for (call, part), taken in self.decisions.items() if call == place[0])

    def near(self, place: Place, module: str) -> bool:
        """Whether a failure is inside a module."""
        where = next((c.module for c in self.labels.capture.calls if c.index == place[0]), place[1])
        return where == module or where.startswith(f"{module}.")


def place_of(failure: Failure) -> Place:
    return (failure.call.index if failure.call is not None else -1, failure.module)


def first_output(failure: Failure) -> int | None:
    """The value whose sizes a failing call was told."""
    call: Call | None = failure.call
    if failure.made is not None or call is None:
        return failure.made
    return call.outputs[0] if call.outputs else None


def told_sizes(failure: Failure, seen: Round) -> dict[Spot, Origin]:
    """The axes that a failing call was told the sizes of, and where those come from."""
    call, shapes, value = failure.call, seen.labels.capture.shapes, first_output(failure)
    if call is None or value is None:
        return {}
    spots = [(value, axis) for axis in range(len(shapes[value]))]
    origins = failure.origins
    if isinstance(call.args.get("split_sizes"), (list, tuple)):
        made, axis = [one for one in call.outputs if one is not None], call.args["dim"]
        spots = [(one, axis % len(shapes[one])) for one in made]
        origins = origins[: len(spots)]
    return dict(zip(spots, origins, strict=True)) if len(spots) == len(origins) else {}
