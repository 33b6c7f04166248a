"""Axes that have to keep pace because the network takes the size of one from the other.

``x.reshape(b, n, c)`` with a `c` that is the width of another tensor is right as long as both widths stay equal: their
units then go together. ``x.view(b, n, heads, c // heads)`` is right as long as every head has as many of the `c`
channels as before: those of one head then go with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from halp_iee.graph.labels import Axis, Labels
from halp_iee.graph.origins import Computed, OfAxis, OfModule, Origin
from halp_iee.graph.replay import Failure
from halp_iee.graph.rounds import Place, Round, Spot, first_output, place_of, told_sizes

REASON = "takes its size from a tensor of fixed size"


@dataclass(frozen=True)
class Join:
    """Two axes that are tied.

    Attributes:
        one, two: the axes; `one` is as long as `two` or a multiple.
        blocks: for a multiple, whether `one` has a block of positions for each of `two`; else `two` is repeated.
    """

    one: Spot
    two: Spot
    blocks: bool = False


Held = Callable[[tuple[str, str, int]], "Spot | None"]
"""The axis that a module's number is bound to."""


class Joins:
    """The ties that were found from failures."""

    def __init__(self) -> None:
        self._held: dict[Join, Place] = {}
        self._fresh: set[Join] = set()
        self._refused: set[tuple[Join, int]] = set()

    def tie(self, labels: Labels) -> None:
        """Apply the ties to labels."""
        for join, (call, _) in self._held.items():
            first, second = _axis(labels, join.one), _axis(labels, join.two)
            if first is None or second is None:
                continue
            rows = first.atoms.reshape((len(second.atoms), -1) if join.blocks else (-1, len(second.atoms)))
            for row in rows.T if join.blocks else rows:
                labels.tie(np.ascontiguousarray(row), second.atoms, call, REASON)

    def forget(self, away: Callable[[Spot], bool]) -> None:
        """Forget what was found and refused, except for axes that are away from what has changed."""
        self._held = {join: place for join, place in self._held.items() if away(join.one) and away(join.two)}
        self._fresh &= self._held.keys()
        self._refused = {(join, at) for join, at in self._refused if away(join.one) and away(join.two)}

    def settle(self) -> None:
        """What was tied last has proved itself."""
        self._fresh = set()

    def review(self, failures: Sequence[Failure], seen: Round) -> None:
        """Take back the ties of the last round that did not mend their place."""
        now = {place_of(failure) for failure in failures}
        for join in self._fresh:
            if self._held[join] in now:
                self._refused.add((join, seen.option(self._held.pop(join))))
        self._fresh = set()

    def told(self, failures: Sequence[Failure], seen: Round, held: Held) -> bool:
        """Tie what the sizes that failing calls were told ask for; says whether there is something new to try."""
        for failure in failures:
            for join in _told(failure, seen, held):
                self._try(join, place_of(failure), seen)
        return bool(self._fresh)

    def nearby(self, failures: Sequence[Failure], seen: Round) -> bool:
        """Tie an axis of the size that was given, one for each failure; says whether there is something new to try."""
        chosen = {call for call, _ in seen.labels.choices}
        for failure in failures:
            if failure.call is not None and failure.call.index not in chosen:
                next((join for join in _nearby(failure, seen) if self._try(join, place_of(failure), seen)), None)
        return bool(self._fresh)

    def _try(self, join: Join, place: Place, seen: Round) -> bool:
        if join in self._held or (join, seen.option(place)) in self._refused:
            return False
        self._held[join] = place
        self._fresh.add(join)
        return True


def _axis(labels: Labels, spot: Spot) -> Axis | None:
    label = labels.of[spot[0]]
    return None if label is None else label[spot[1]]


def _wrong(failure: Failure, seen: Round) -> list[int]:
    """The axes that were given another size than their channels say."""
    value = first_output(failure)
    if value is None or len(failure.given) != len(seen.labels.capture.shapes[value]):
        return []
    return [axis for axis, size in enumerate(failure.given) if size != -1 and size != seen.sizes((value, axis))[1]]


def _told(failure: Failure, seen: Round, held: Held) -> Iterator[Join]:
    """Ties that follow from where the sizes come from."""
    origins = told_sizes(failure, seen)
    value = first_output(failure)
    wrong = {(value, axis) for axis in _wrong(failure, seen)} if value is not None else set()
    for spot, origin in origins.items():
        if isinstance(origin, OfModule):
            bound = held(origin.key)
            if bound is not None and bound != spot and _alike(bound, spot, seen):
                yield Join(spot, bound)
        if spot not in wrong:
            continue
        if isinstance(origin, OfAxis) and _alike((origin.value, origin.axis), spot, seen):
            yield Join(spot, (origin.value, origin.axis))
        elif isinstance(origin, Computed) and origin.operation == "//" and isinstance(origin.left, OfAxis):
            source = (origin.left.value, origin.left.axis)
            if seen.axis(source) is not None:
                yield from _parts(spot, origin.right, source, origins, seen)


def _alike(one: Spot, two: Spot, seen: Round) -> bool:
    """Whether both axes carry as many channels, and not the same."""
    first, second = seen.axis(one), seen.axis(two)
    if first is None or second is None or first.atoms is second.atoms:
        return False
    return seen.sizes(one)[0] == seen.sizes(two)[0]


def _parts(spot: Spot, parts: Origin, source: Spot, told: Mapping[Spot, Origin], seen: Round) -> Iterator[Join]:
    """An axis has one part of another's size: so many channels a head, and the heads are an axis beside it."""
    full, part = seen.sizes(source)[0], seen.sizes(spot)[0]
    for other, origin in told.items():
        beside = other != spot and origin == parts and not isinstance(origin, int) and seen.axis(other) is not None
        if beside and full == seen.sizes(other)[0] * part:
            yield Join(source, other, blocks=True)
    if seen.axis(spot) is not None and full % part == 0:
        yield Join(source, spot)


def _nearby(failure: Failure, seen: Round) -> Iterator[Join]:
    """The axes that have the size which was given, nearest first."""
    labels, call, value = seen.labels, failure.call, first_output(failure)
    assert call is not None
    if value is None:
        return
    wrong = [axis for axis in _wrong(failure, seen) if failure.given[axis] != seen.sizes((value, axis))[0]]
    if not wrong:
        return
    inside = f"{call.module}."
    met: set[int] = set()
    for one in reversed(labels.capture.calls):
        if one.index >= call.index or (call.module and one.module != call.module and not one.module.startswith(inside)):
            continue
        for other in [ref.id for ref in one.refs if labels.capture.active[ref.id]]:
            for number, axis in enumerate(labels.of[other] or []):
                if axis is None or id(axis.atoms) in met:
                    continue
                met.add(id(axis.atoms))
                for target in wrong:
                    full, given = seen.sizes((value, target))[0], failure.given[target]
                    if seen.axis((value, target)) is not None and (full, given) == seen.sizes((other, number)):
                        yield Join((value, target), (other, number))
