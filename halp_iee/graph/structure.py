"""Apply the rules, try the result, and repeat until the slim network runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from halp_iee.graph.bindings import Bindings
from halp_iee.graph.calls import Capture
from halp_iee.graph.groups import Structure, form
from halp_iee.graph.joins import Joins
from halp_iee.graph.labels import Choice, Freeze, Labels, Step, start
from halp_iee.graph.operations import Operations
from halp_iee.graph.replay import Failure
from halp_iee.graph.rounds import Round, Spot
from halp_iee.graph.rules import RULES, unknown
from halp_iee.graph.rules.base import with_zero
from halp_iee.graph.sandbox import walk
from halp_iee.graph.trial import attempt, trial_seeds

MOST_ROUNDS = 80

Decisions = Mapping[tuple[int, int], int]


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
    """The decisions, ties, bindings and freezes found so far."""

    def __init__(self, model: nn.Module, captures: Sequence[Capture]) -> None:
        self.model = model
        self.captures = captures
        self.decisions: dict[tuple[int, int], int] = {}
        self.frozen: list[Freeze] = []
        self.refused: dict[tuple[int, int], dict[int, bool]] = {}
        self.settled: set[tuple[int, int]] = set()
        self.labels: list[Labels] = []
        self.modules = dict(walk(model))
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.joins, self.bindings = Joins(), Bindings()
        self.structure: Structure
        self.operations: Operations

    @property
    def seen(self) -> Round:
        return Round(self.labels[0], self.shapes, self.modules, self.decisions)

    def label(self) -> None:
        """Apply the rules under the present decisions and form the groups."""
        labels: list[Labels] = []
        for capture in self.captures:
            first_atom = labels[-1].atoms if labels else 0
            labels.append(apply_rules(capture, self.model, self.decisions, self.frozen, first_atom))
        self.labels = labels
        self.joins.tie(labels[0])
        self.operations = Operations(labels[0])
        self.structure = form(labels, self.model, self.operations.channel_axes)
        self.structure = replace(self.structure, attributes=self.bindings.sized(self.seen, self.structure))
        groups = self.structure.groups
        able = np.array([group.prunable for group in groups] + [False])
        self.able = able[self.structure.group_of]  # -1 picks the last, False

    def settle(self) -> None:
        """What was tried last has proved itself."""
        self.joins.settle()
        self.bindings.settle()

    def classes(self, atoms: np.ndarray) -> np.ndarray:
        return np.unique(self.structure.classes[atoms[atoms >= 0]])

    def next_options(self) -> bool:
        """Where a choice left nothing to prune and another option remains, take that.

        Those that have tried least go first: a choice may be frozen only because another,
        such as the keys' heads beside the queries', has not been turned yet. Those of grouped convolutions wait for
        all others.
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
        others = [(key, choice) for key, choice in stuck if choice.weight is None]
        # Those that are whole leave nothing to those beside them whose units are inside, so they give way first.
        whole = [(key, choice) for key, choice in stuck if choice.taken == 0 and not self.refused.get(key)]
        stuck = others or whole or stuck
        least = min(len(self.refused.get(key, ())) for key, _ in stuck)
        return self._turn_all({key for key, _ in stuck if len(self.refused.get(key, ())) == least}) or (
            self.next_options()
        )

    def _turn_all(self, keys: set[tuple[int, int]], *, failed: bool = False) -> bool:
        """Take the next option of several choices; says whether that changes anything.

        Once a grouped convolution is turned, what lies around it was refused under other units: it begins anew.
        """
        known = {key: choice for labels in self.labels for key, choice in labels.choices.items()}
        weights = {known[key].weight for key in keys} - {None, ""}
        keys = keys | {key for key, one in known.items() if one.weight in weights and one.taken < one.options}
        turned = [key for key in known if key in keys and self.turn(key, known[key], failed=failed)]
        around = [known[key].atoms for key in turned if known[key].weight is not None]
        if around:
            touched = np.zeros(len(self.structure.group_of), dtype=bool)
            touched[self.classes(np.concatenate(around))] = True
            for key, choice in known.items():
                if choice.weight is None and touched[self.classes(choice.atoms)].any():
                    self.decisions.pop(key, None)
                    self.refused.pop(key, None)
                    self.settled.discard(key)
            self.frozen = [freeze for freeze in self.frozen if not touched[self.classes(freeze.atoms)].any()]

            def away(spot: Spot) -> bool:
                axis = self.seen.axis(spot)
                return axis is None or not touched[self.classes(axis.atoms)].any()

            self.joins.forget(away)
            self.bindings.forget(away)
        return bool(turned)

    def turn(self, key: tuple[int, int], choice: Choice, *, failed: bool = False) -> bool:
        """Take the next option of a choice; says whether that changes anything."""
        refused = self.refused.setdefault(key, {})
        refused[choice.taken] = failed
        following = next((option for option in range(choice.options) if option not in refused), None)
        if following is None:
            # All tried. If one failed, sizes are written down here. If none did, all was
            # frozen whatever is chosen: the cause lies elsewhere, and its reason is the one to tell.
            self.settled.add(key)
            following = choice.options if any(refused.values()) or choice.weight is not None else 0
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

    def _explained(self, failures: Sequence[Failure]) -> bool:
        """Tie or bind what the failures point at; says whether there is something new to try."""
        seen = self.seen
        self.joins.review(failures, seen)
        self.bindings.review(failures, seen)
        tied = self.joins.told(failures, seen, lambda key: self.bindings.held(key, seen))
        if self.bindings.told(failures, seen) or tied:
            return True
        return self.joins.nearby(failures, seen) or self.bindings.guessed(failures, seen)

    def learn(self, failures: Sequence[Failure]) -> None:
        """Tie or bind where a size is taken from elsewhere, turn to the next option where one remains, else freeze."""
        if self._explained(failures):
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
            # A grouped convolution is turned where it fails itself, else where nothing else can be.
            others = [key for key in open_choices if self.labels[0].choices[key].weight is None]
            chosen = here or others or open_choices
            if chosen:
                turned.update(chosen)
                continue
            reason = f"a size hard-coded in forward ({_place(failure)})"
            self.frozen.append(Freeze(every[np.isin(classes, blamed)], reason, -1))
        self._turn_all(self._together(turned), failed=True)


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
        for seed in trial_seeds(search.structure, captures[0]):
            search.shapes = {}
            failures = attempt(model, args, kwargs, search.structure, search.labels[0], seed, search.shapes)
            if failures:
                search.learn(failures)
                break
        else:
            search.settle()
            if not search.next_options():
                return search
    # Never seen; but a network that still fails is better left whole than broken.
    every = [axis.atoms for value in captures[0].tensors for axis in search.labels[0].of[value] or [] if axis]
    search.frozen.append(Freeze(np.concatenate(every), "the slim network did not run", -1))
    search.label()
    return search
