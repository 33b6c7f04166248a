"""Which numbers of its modules have to follow a network's sizes, learned from where the slim network fails.

Where a call was told a size that a module keeps, that number is bound to the axis. Where the number's origin was lost
on the way, the numbers of the modules around that are equal to the size are tried one after the other. A binding that
does not mend its place is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from halp_iee.graph.attributes import Binding, SizedAttribute, matching
from halp_iee.graph.groups import Structure
from halp_iee.graph.origins import OfModule, Origin, leaves
from halp_iee.graph.replay import Failure
from halp_iee.graph.rounds import Place, Round, Spot, place_of, told_sizes
from halp_iee.slim.surgery import ATTRIBUTES

MOST_TRIES = 2
MOST_AHEAD = 4
"""Calls after a failing one whose results its numbers may be the sizes of: the width of queries, keys and values is
three times the size of a head, which is seen where they are parted."""

Key = tuple[str, str, int]


class Bindings:
    """The bindings that hold, and those on probation."""

    def __init__(self) -> None:
        self._held: dict[Key, Binding] = {}
        self._probation: list[tuple[Binding, Place, set[Place] | None]] = []
        self._tries: dict[Key, int] = {}
        self._dropped: set[tuple[Binding, Place, int]] = set()

    def sized(self, seen: Round, structure: Structure) -> tuple[SizedAttribute, ...]:
        """The bound numbers by the units that they count."""
        found = []
        for binding in self._held.values():
            axis = seen.axis((binding.value, binding.axis))
            if axis is None:
                continue
            units = structure.units(axis.atoms)
            if (units.group >= 0).any():
                found.append(SizedAttribute(*binding.key, binding.full, binding.factor, units.group, units.unit))
        return tuple(found)

    def forget(self, away: Callable[[Spot], bool]) -> None:
        """Forget what was found and refused, except for axes that are away from what has changed."""
        gone = {dropped for dropped in self._dropped if not away((dropped[0].value, dropped[0].axis))}
        for binding, _, _ in gone:
            self._tries.pop(binding.key, None)
        self._dropped -= gone
        self._held = {key: one for key, one in self._held.items() if away((one.value, one.axis))}
        self._probation = [one for one in self._probation if one[0].key in self._held]

    def settle(self) -> None:
        """What was bound last has proved itself."""
        self._probation = []

    def held(self, key: Key, seen: Round) -> Spot | None:
        """The axis that a number is bound to, if it carries channels."""
        binding = self._held.get(key)
        if binding is None or binding.factor != 1 or not self._active(binding, seen):
            return None
        return binding.value, binding.axis

    def review(self, failures: Sequence[Failure], seen: Round) -> None:
        """Drop what was bound in the last round and did not mend its place, or broke something else."""
        now = {place_of(failure) for failure in failures}
        ended = {place_of(failure) for failure in failures if failure.fatal}
        for binding, place, before in self._probation:
            away = ended - (before or set())
            near = [p for p in away if binding.module == "" or seen.near(p, binding.module)]
            if place in now or near:
                self._held.pop(binding.key, None)
                self._dropped.add((binding, place, seen.option(place)))
                # What led elsewhere, or was tried often, is not a size: it is not tried again.
                alone = near and sum(b.module == binding.module for b, _, _ in self._probation) == 1
                self._tries[binding.key] = MOST_TRIES if alone else self._tries.get(binding.key, 0) + 1
        self._probation = []

    def told(self, failures: Sequence[Failure], seen: Round) -> bool:
        """Bind the numbers that failing calls were told; says whether there is something new to try."""
        for failure in failures:
            for binding in self._listed(failure, seen) or self._told(failure, seen):
                self._bind(binding, failure, failures)
        return bool(self._probation)

    def guessed(self, failures: Sequence[Failure], seen: Round) -> bool:
        """Bind numbers of modules around that could be meant; says whether there is something new to try."""
        fresh: set[Key] = set()
        for failure in failures:
            place = place_of(failure)
            made = (*(failure.call.outputs if failure.call is not None else ()), failure.made)
            served: set[Spot] = set()
            for binding in _meant(failure, seen):
                where = (binding.value, binding.axis)
                if binding.key in fresh and not served:
                    break  # queries, keys and values are at odds with one number, and one binding mends all
                if where in served or (served and binding.value not in made):
                    continue
                taken = binding.key in self._held and self._active(self._held[binding.key], seen)
                hopeless = self._tries.get(binding.key, 0) >= MOST_TRIES
                if not taken and not hopeless and self._untried(binding, place, seen):
                    self._bind(binding, failure, failures)
                    fresh.add(binding.key)
                    served.add(where)
        return bool(self._probation)

    def _bind(self, binding: Binding, failure: Failure, failures: Sequence[Failure]) -> None:
        before = None if any(one.fatal for one in failures) else {place_of(one) for one in failures}
        self._held[binding.key] = binding
        self._probation.append((binding, place_of(failure), before))

    def _told(self, failure: Failure, seen: Round) -> list[Binding]:
        """The numbers that the failing call was told, each by the axis that it is the size of."""
        place, found = place_of(failure), []
        told = told_sizes(failure, seen)
        origins: Sequence[Origin] = failure.origins
        if told and len(told) == len(failure.given):  # what an axis of the right size was computed from is in order
            pairs = zip(told.items(), failure.given, strict=True)
            origins = [origin for (spot, origin), given in pairs if given != seen.sizes(spot)[1]]
        found_in = [one for origin in origins for one in leaves(origin)]
        keys = dict.fromkeys(one for one in found_in if isinstance(one, OfModule))
        if not keys or failure.call is None:
            return []
        for number in keys:
            if self.held(number.key, seen) is not None:
                continue
            full = _number(number, seen)
            exact = [spot for spot, origin in told.items() if origin == number]
            for spot in exact or _spots(failure, seen):
                if seen.axis(spot) is None or full != seen.sizes(spot)[0]:
                    continue
                binding = Binding(*number.key, full, *spot)
                if self._untried(binding, place, seen):
                    found.append(binding)
                    break
        return found

    def _listed(self, failure: Failure, seen: Round) -> list[Binding]:
        """For a split at sizes that a module keeps as one list or tuple: every size of it."""
        call = failure.call
        sizes = call.args.get("split_sizes") if call is not None else None
        if call is None or not isinstance(sizes, (list, tuple)) or len(sizes) != len(call.outputs):
            return []
        labels, path = seen.labels, call.module
        while True:
            for name, value in vars(seen.modules[path]).items() if path in seen.modules else ():
                if isinstance(value, (list, tuple)) and list(value) == list(sizes):
                    dim = len(labels.capture.shapes[call.outputs[0] or 0])
                    axis = call.args["dim"] % dim
                    found = [
                        Binding(path, name, item, size, made, axis)
                        for item, (size, made) in enumerate(zip(sizes, call.outputs, strict=True))
                        if made is not None and seen.axis((made, axis)) is not None
                    ]
                    new = [one for one in found if self._untried(one, place_of(failure), seen)]
                    fresh = len(new) == len(found) and not all(one.key in self._held for one in found)
                    return found if fresh else []
            if not path:
                return []
            path = path.rpartition(".")[0]

    def _untried(self, binding: Binding, place: Place, seen: Round) -> bool:
        return (binding, place, seen.option(place)) not in self._dropped

    @staticmethod
    def _active(binding: Binding, seen: Round) -> bool:
        return seen.axis((binding.value, binding.axis)) is not None


def _number(number: OfModule, seen: Round) -> int:
    """A module's number at full size."""
    kept = getattr(seen.modules[number.module], number.name)
    return int(kept if number.item < 0 else kept[number.item])


def _spots(failure: Failure, seen: Round) -> list[Spot]:
    """The axes of what a failing call makes and reads, and of what its module makes next."""
    call, shapes = failure.call, seen.labels.capture.shapes
    assert call is not None
    made = [value for value in (failure.made, *call.outputs) if value is not None]
    after = call.index + 1 - seen.labels.capture.first
    following = seen.labels.capture.calls[after : after + MOST_AHEAD]
    later = [value for one in following if one.module == call.module for value in one.outputs if value is not None]
    values = dict.fromkeys([*made, *(ref.id for ref in call.refs), *later])
    return [(value, axis) for value in values for axis in range(len(shapes[value]))]


def _meant(failure: Failure, seen: Round) -> list[Binding]:
    """The numbers of modules that a failure could have read."""
    labels, call = seen.labels, failure.call
    module = failure.module or (call.module if call is not None else "")
    values = [failure.made] if failure.made is not None else []
    values += [value for value in call.outputs if value is not None] if call is not None else []
    values += [ref.id for ref in call.refs] if call is not None else []
    if failure.fatal:
        values += [ref.id for c in labels.capture.calls if c.module == module for ref in c.refs]
    places = []
    for value in dict.fromkeys(values):
        for axis, one in enumerate(labels.of[value] or []):
            if one is not None and value in seen.shapes:
                full, slim = seen.sizes((value, axis))
                if full != slim:
                    places.append((full, value, axis))
    return matching(seen.modules, module, places, tuple(kind for kind, _ in ATTRIBUTES))
