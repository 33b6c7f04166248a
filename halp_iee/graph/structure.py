"""Apply the rules, try the result, and repeat until the slim network runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from halp_iee.graph.attributes import Binding, SizedAttribute, matching
from halp_iee.graph.calls import Call, Capture
from halp_iee.graph.groups import Structure, form
from halp_iee.graph.labels import Axis, Choice, Freeze, Labels, Step, start
from halp_iee.graph.operations import Operations
from halp_iee.graph.rules import RULES, unknown
from halp_iee.graph.rules.base import with_zero
from halp_iee.graph.trial import Failure, attempt
from halp_iee.slim.surgery import ATTRIBUTES

TRIAL_SEEDS = (0, 1)
MOST_ROUNDS = 80
MOST_TRIES = 2

Decisions = Mapping[tuple[int, int], int]
Join = tuple[tuple[int, int], tuple[int, int]]
"""Two axes, each by (value id, position), that are tied because one is given the size of the other."""


def apply_rules(
    capture: Capture, model: nn.Module, decisions: Decisions, frozen: Sequence[Freeze], first_atom: int = 0
) -> Labels:
    """Label every value of a capture. Parameters have the same atoms in every capture of a network."""
    labels = start(capture, model, decisions, frozen)
    labels.atoms = max(labels.atoms, first_atom)
    live = capture.live()
    for position, call in enumerate(capture.calls):
        before, step = len(labels.freezes), Step(labels, call)
        rule = RULES.get(call.name)
        if rule is None:
            unknown(step)
            if any(labels.of[ref.id] is not None for ref in call.refs):
                labels.unknown.setdefault(call.name, call.module)
        else:
            try:
                rule.apply(step)
            except Exception as error:  # a form of the call that its rule does not foresee
                labels.unknown.setdefault(call.name, f"{call.module} ({type(error).__name__}: {error})")
                unknown(step)
        if capture.fake and position not in live:
            del labels.freezes[before:]  # nothing comes of it, so nothing has to stay for it
        if call.mutated:
            made = labels.of[call.outputs[0]] if call.outputs and call.outputs[0] is not None else None
            if made is None or any(axis is not None and not axis.zero for axis in made):
                for value in call.mutated:
                    label = labels.of[value]
                    if label is not None and value not in capture.tensors:
                        labels.of[value] = with_zero(label, False)
    for value in capture.outputs:
        for axis in labels.of[value] or []:
            if axis is not None:
                labels.freeze(axis.atoms, "network output", capture.first + len(capture.calls))
    return labels


def _place(failure: Failure) -> str:
    """Where a size is written down, in words: the operation, the module and what it said."""
    if failure.call is None:
        return f"{failure.module}: {failure.error}" if failure.module else failure.error
    name = failure.call.name.split("::")[-1]
    return f"{name} in {failure.call.module}: {failure.error}" if failure.call.module else f"{name}: {failure.error}"


class Search:
    """The decisions and freezes found so far."""

    def __init__(self, model: nn.Module, captures: Sequence[Capture]) -> None:
        self.model = model
        self.captures = captures
        self.decisions: dict[tuple[int, int], int] = {}
        self.frozen: list[Freeze] = []
        self.refused: dict[tuple[int, int], dict[int, bool]] = {}
        self.settled: set[tuple[int, int]] = set()
        self.labels: list[Labels] = []
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.bindings: dict[tuple[str, str, int], Binding] = {}
        self.probation: list[tuple[Binding, tuple[int, str], set[tuple[int, str]] | None]] = []
        self.tries: dict[tuple[str, str, int], int] = {}
        self.dropped: set[tuple[Binding, tuple[int, str], int]] = set()
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.joined: dict[Join, tuple[int, str]] = {}
        self.joining: set[Join] = set()
        self.apart: set[Join] = set()
        self.structure: Structure
        self.operations: Operations

    def label(self) -> None:
        """Apply the rules under the present decisions and form the groups."""
        labels: list[Labels] = []
        for capture in self.captures:
            first_atom = labels[-1].atoms if labels else 0
            labels.append(apply_rules(capture, self.model, self.decisions, self.frozen, first_atom))
        self.labels = labels
        for (one, two), (call, _) in self.joined.items():
            first, second = self._axis(one), self._axis(two)
            if first is not None and second is not None:
                labels[0].tie(first.atoms, second.atoms, call, "takes its size from a tensor of fixed size")
        self.operations = Operations(labels[0])
        self.structure = form(labels, self.model, self.operations.channel_axes)
        self.structure = replace(self.structure, attributes=self.sized())
        groups = self.structure.groups
        able = np.array([group.prunable for group in groups] + [False])
        self.able = able[self.structure.group_of]  # -1 picks the last, False

    def sized(self) -> tuple[SizedAttribute, ...]:
        """The bound numbers by the units that they count."""
        found = []
        for binding in self.bindings.values():
            label = self.labels[0].of[binding.value]
            axis = label[binding.axis] if label is not None else None
            if axis is None:
                continue
            units = self.structure.units(axis.atoms)
            if (units.group >= 0).any():
                found.append(SizedAttribute(*binding.key, binding.full, binding.factor, units.group, units.unit))
        return tuple(found)

    def place(self, failure: Failure) -> tuple[int, str]:
        """Where a failure is, comparable from round to round."""
        return (failure.call.index if failure.call is not None else -1, failure.module)

    def _axis(self, place: tuple[int, int]) -> Axis | None:
        label = self.labels[0].of[place[0]]
        return None if label is None else label[place[1]]

    def join(self, failures: Sequence[Failure]) -> bool:
        """Tie an axis to the one whose size the network gave it; says whether there is something new to try.

        ``x.reshape(b, n, c)`` with a `c` that is the width of another tensor is right as long as both widths
        stay equal: their units then go together. A tie that does not mend its place is taken back.
        """
        now = {self.place(failure) for failure in failures}
        for join in self.joining:
            if self.joined[join] in now:
                del self.joined[join]
                self.apart.add(join)
        self.joining = set()
        chosen = {call for call, _ in self.labels[0].choices}
        for failure in failures:
            if failure.call is not None and failure.call.index not in chosen:
                for join in self._sources_of(failure.call, failure.given, failure.made):
                    if join not in self.joined and join not in self.apart:
                        self.joined[join] = self.place(failure)
                        self.joining.add(join)
                        break
        return bool(self.joining)

    def _sources_of(self, call: Call, given: Sequence[int], made: int | None) -> Iterator[Join]:
        """For an axis that was given another size than its channels say: the axes of that size, nearest first."""
        labels = self.labels[0]
        value = made if made is not None else call.outputs[0] if call.outputs else None
        if value is None or len(given) != len(labels.capture.shapes[value]):
            return
        full, want = labels.capture.shapes[value], self.shapes.get(value, ())
        wrong = [
            k for k, (one, two) in enumerate(zip(given, want, strict=False)) if one != two and one not in (-1, full[k])
        ]
        if not wrong:
            return
        seen: set[int] = set()
        earlier = (
            [
                one
                for one in labels.capture.calls
                if one.index < call.index and (one.module == call.module or one.module.startswith(f"{call.module}."))
            ]
            if call.module
            else [one for one in labels.capture.calls if one.index < call.index]
        )
        for one in reversed(earlier):
            for other in [ref.id for ref in one.refs if labels.capture.active[ref.id]]:
                for k, axis in enumerate(labels.of[other] or []):
                    if axis is None or id(axis.atoms) in seen:
                        continue
                    seen.add(id(axis.atoms))
                    for target in wrong:
                        size = labels.capture.shapes[other][k]
                        if self._axis((value, target)) is not None and (full[target], given[target]) == (
                            size,
                            self.shapes[other][k],
                        ):
                            yield (value, target), (other, k)

    def bind(self, failures: Sequence[Failure]) -> bool:
        """Let numbers that modules keep follow the sizes that failed; says whether there is something new to try.

        What was bound in the last round stays only if its place is mended and nothing else broke.
        """
        now = {self.place(failure) for failure in failures}
        ended = {self.place(failure) for failure in failures if failure.fatal}
        for binding, place, before in self.probation:
            away = ended - (before or set())
            near = [p for p in away if binding.module == "" or self._near(p, binding.module)]
            if place in now or near:
                self.bindings.pop(binding.key, None)
                self.dropped.add((binding, place, self._option(place)))
                # What led elsewhere, or was tried often, is not a size: it is not tried again.
                alone = near and sum(b.module == binding.module for b, _, _ in self.probation) == 1
                self.tries[binding.key] = MOST_TRIES if alone else self.tries.get(binding.key, 0) + 1
        self.probation = []
        fatal = any(failure.fatal for failure in failures)
        fresh: set[tuple[str, str, int]] = set()
        for failure in failures:
            place = self.place(failure)
            made = (*(failure.call.outputs if failure.call is not None else ()), failure.made)
            served: set[tuple[int, int]] = set()
            listed = self.listed(failure)
            for binding in listed:
                self.bindings[binding.key] = binding
                fresh.add(binding.key)
                self.probation.append((binding, place, None if fatal else now))
            if listed:
                continue
            for binding in self.meant(failure):
                where = (binding.value, binding.axis)
                if binding.key in fresh and not served:
                    break  # queries, keys and values are at odds with one number, and one binding mends all
                if where in served or (served and binding.value not in made):
                    continue
                taken = binding.key in self.bindings and self._active(self.bindings[binding.key])
                hopeless = self.tries.get(binding.key, 0) >= MOST_TRIES
                if not taken and not hopeless and (binding, place, self._option(place)) not in self.dropped:
                    self.bindings[binding.key] = binding
                    fresh.add(binding.key)
                    self.probation.append((binding, place, None if fatal else now))
                    served.add(where)
        return bool(self.probation)

    def listed(self, failure: Failure) -> list[Binding]:
        """For a split at sizes that a module keeps as one list or tuple: every size of it."""
        call = failure.call
        sizes = call.args.get("split_sizes") if call is not None else None
        if call is None or not isinstance(sizes, (list, tuple)) or len(sizes) != len(call.outputs):
            return []
        path = call.module
        while True:
            for name, value in vars(self.modules[path]).items() if path in self.modules else ():
                if isinstance(value, (list, tuple)) and list(value) == list(sizes):
                    dim = len(self.labels[0].capture.shapes[call.outputs[0] or 0])
                    axis = call.args["dim"] % dim
                    found = [
                        Binding(path, name, item, size, made, axis)
                        for item, (size, made) in enumerate(zip(sizes, call.outputs, strict=True))
                        if made is not None and (label := self.labels[0].of[made]) and label[axis] is not None
                    ]
                    place = self.place(failure)
                    new = [b for b in found if (b, place, self._option(place)) not in self.dropped]
                    return found if len(new) == len(found) and not all(b.key in self.bindings for b in found) else []
            if not path:
                return []
            path = path.rpartition(".")[0]

    def _active(self, binding: Binding) -> bool:
        label = self.labels[0].of[binding.value]
        return label is not None and label[binding.axis] is not None

    def _option(self, place: tuple[int, str]) -> int:
        return sum((1 + taken) * 7**part for (call, part), taken in self.decisions.items() if call == place[0])

    def _near(self, place: tuple[int, str], module: str) -> bool:
        where = next((c.module for c in self.labels[0].capture.calls if c.index == place[0]), place[1])
        return where == module or where.startswith(f"{module}.")

    def meant(self, failure: Failure) -> list[Binding]:
        """The numbers of modules that a failure could have read."""
        labels, call = self.labels[0], failure.call
        module = failure.module or (call.module if call is not None else "")
        values = [failure.made] if failure.made is not None else []
        values += [value for value in call.outputs if value is not None] if call is not None else []
        values += [ref.id for ref in call.refs] if call is not None else []
        if failure.fatal:
            values += [ref.id for c in labels.capture.calls if c.module == module for ref in c.refs]
        places = []
        for value in dict.fromkeys(values):
            full, slim = labels.capture.shapes[value], self.shapes.get(value)
            for axis, one in enumerate(labels.of[value] or []):
                if one is not None and slim is not None and slim[axis] != full[axis]:
                    places.append((full[axis], value, axis))
        return matching(self.modules, module, places, tuple(kind for kind, _ in ATTRIBUTES))

    def classes(self, atoms: np.ndarray) -> np.ndarray:
        return np.unique(self.structure.classes[atoms[atoms >= 0]])

    def next_options(self) -> bool:
        """Where a choice left nothing to prune and another option remains, take that.

        Those that have tried least go first: a choice may be frozen only because another,
        such as the keys' heads beside the queries', has not been turned yet.
        """
        stuck = [
            (key, choice)
            for labels in self.labels
            for key, choice in labels.choices.items()
            if 1 < choice.options > choice.taken
            and key not in self.settled
            and not self.able[self.classes(choice.atoms)].any()
        ]
        if not stuck:
            return False
        least = min(len(self.refused.get(key, ())) for key, _ in stuck)
        turned = [self.turn(key, choice) for key, choice in stuck if len(self.refused.get(key, ())) == least]
        return any(turned) or self.next_options()

    def turn(self, key: tuple[int, int], choice: Choice, *, failed: bool = False) -> bool:
        """Take the next option of a choice; says whether that changes anything."""
        refused = self.refused.setdefault(key, {})
        refused[choice.taken] = failed
        following = next((option for option in range(choice.options) if option not in refused), None)
        if following is None:
            # All tried. If one failed, sizes are written down here. If none did, all was
            # frozen whatever is chosen: the cause lies elsewhere, and its reason is the one to tell.
            self.settled.add(key)
            following = choice.options if any(refused.values()) else 0
        self.decisions[key] = following
        return following != choice.taken

    def _together(self, turned: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Choices to turn, with those of the same module that are made alike (see `Labels.choose`)."""
        labels = self.labels[0]
        module = {call.index: call.module for call in labels.capture.calls}
        alike = {
            (module.get(key[0]), choice.sizes, choice.taken)
            for key in turned
            if (choice := labels.choices[key]).sizes and module.get(key[0])
        }
        return turned | {
            key
            for key, choice in labels.choices.items()
            if choice.taken < choice.options and (module.get(key[0]), choice.sizes, choice.taken) in alike
        }

    def implicated(self, failure: Failure) -> np.ndarray:
        """The removable classes that a failure can be blamed on, the narrowest set that has any."""
        labels = self.labels[0]

        def of_values(values: Sequence[int]) -> np.ndarray:
            axes = [
                axis.atoms
                for value in dict.fromkeys(values)
                for number, axis in enumerate(labels.of[value] or [])
                if axis is not None and self._fits(failure, value, number)
            ]
            found = self.classes(np.concatenate(axes)) if axes else np.zeros(0, dtype=np.int64)
            return found[self.able[found]]

        if failure.call is not None:
            exact = [(labels.of[value] or [None] * (axis + 1))[axis] for value, axis in failure.axes]
            atoms = [axis.atoms for axis in exact if axis is not None]
            if atoms:
                found = self.classes(np.concatenate(atoms))
                found = found[self.able[found]]
                if found.size:
                    return found
            found = of_values([ref.id for ref in failure.call.refs])
            if found.size:
                return found
        module = failure.module or (failure.call.module if failure.call is not None else "")
        while True:
            inside = [
                call for call in labels.capture.calls if call.module == module or call.module.startswith(f"{module}.")
            ]
            calls = inside if module else labels.capture.calls
            read = [ref.id for call in calls for ref in call.refs]
            # A size that a forward pass writes down mostly comes from a tensor in its hands.
            own = [v for c in calls if c.module == module for v in (r.id for r in c.refs) if labels.capture.active[v]]
            for values in (own, [value for value in read if labels.capture.active[value]], read):
                found = of_values(values)
                if found.size:
                    return found
            if not module:
                return found
            module = module.rpartition(".")[0]

    def _fits(self, failure: Failure, value: int, axis: int) -> bool:
        """Whether an axis has the sizes that a failure told."""
        if failure.sizes is None:
            return True
        return failure.sizes == (self.labels[0].capture.shapes[value][axis], self.shapes[value][axis])

    def learn(self, failures: Sequence[Failure]) -> None:
        """Bind a number where one is meant, turn to the next option where one remains, else freeze."""
        if self.join(failures) or self.bind(failures):
            return
        owned = self.labels[0].of
        parameters = [
            axis.atoms for value in self.labels[0].capture.tensors for axis in owned[value] or [] if axis is not None
        ]
        every = np.concatenate(parameters) if parameters else np.zeros(0, dtype=np.int64)
        classes = self.structure.classes[every]
        turned: set[tuple[int, int]] = set()
        for failure in failures:
            blamed = self.implicated(failure)
            open_choices = [
                key
                for key, choice in self.labels[0].choices.items()
                if choice.taken < choice.options and np.isin(self.classes(choice.atoms), blamed).any()
            ]
            here = [key for key in open_choices if failure.call is not None and key[0] == failure.call.index]
            chosen = here or open_choices
            if chosen:
                turned.update(chosen)
                continue
            reason = f"a size hard-coded in forward ({_place(failure)})"
            self.frozen.append(Freeze(every[np.isin(classes, blamed)], reason, -1))
        for key in self._together(turned):
            self.turn(key, self.labels[0].choices[key], failed=True)


def find_structure(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], captures: Sequence[Capture]
) -> Search:
    """Groups under which the slim network runs, whatever is kept.

    Each round applies the rules, then runs the slim network without data and learns from
    what fails; once nothing does, it takes other options where a choice left nothing to prune.
    """
    search = Search(model, captures)
    for _ in range(MOST_ROUNDS):
        search.label()
        for seed in TRIAL_SEEDS:
            search.shapes = {}
            failures = attempt(model, args, kwargs, search.structure, search.labels[0], seed, search.shapes)
            if failures:
                search.learn(failures)
                break
        else:
            search.probation = []
            search.joining = set()
            if not search.next_options():
                return search
    # Never seen; but a network that still fails is better left whole than broken.
    every = [axis.atoms for value in captures[0].tensors for axis in search.labels[0].of[value] or [] if axis]
    search.frozen.append(Freeze(np.concatenate(every), "the slim network did not run", -1))
    search.label()
    return search
