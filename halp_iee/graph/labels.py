"""Labels: which channel each position along each tensor axis carries.

Every position of every parameter axis starts as an *atom* of its own. Operations
tie atoms that must live and die together and freeze those that must stay; the
classes of tied atoms are the units. Labels are arrays, so tying is a list of array
pairs that one connected-components pass resolves at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from halp_iee.graph.calls import Call, Capture, Ref
from halp_iee.graph.sandbox import parameter_names, walk

NO_ATOM = -1
"""Marks a position that carries no channel: it is there whatever is kept."""

MAX_FREE_AXIS = 65536
"""Axes of constants longer than this are taken as fixed, to bound memory."""


class Axis(NamedTuple):
    """Label of one tensor axis.

    Attributes:
        atoms: the atom of each position; NO_ATOM where none.
        zero: whether positions of removed units hold exact zeros in the masked network.
    """

    atoms: np.ndarray
    zero: bool


Label = list["Axis | None"]
"""One entry an axis; None for an axis of fixed size."""


@dataclass
class Freeze:
    atoms: np.ndarray
    reason: str
    call: int


@dataclass
class Choice:
    """A place where the network leaves open what is pruned: a view's or split's parts, a grouped convolution's units.

    Attributes:
        weight: of a grouped convolution the first parameter that its weight comes from. Such a choice is patient: the
            others are turned before it, and begin anew once it is.
    """

    atoms: np.ndarray
    options: int
    taken: int
    sizes: tuple[int, ...] = ()
    weight: str | None = None


@dataclass
class Labels:
    """The labels of one capture while rules are applied to it.

    Attributes:
        decisions: (call index, part) -> which option of a `Choice` to take.
        of: label of each value, by value id; None until it is known.
        parameters: the names that are parameters and not buffers.
        spared: (value id, axis) of parameters whose entries masking must not zero there.
        live: place of a statistic -> axis, counted from the end -> the atoms of which only the live ones count.
        repeated: first atoms of axes that only repeat one position, so that they may have any size.
        within: index of each call of a grouped convolution whose group count stays -> what its weight comes from.
    """

    capture: Capture
    decisions: Mapping[tuple[int, int], int]
    of: list[Label | None]
    atoms: int = 0
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    produced: list[tuple[np.ndarray, str]] = field(default_factory=list)
    selected: list[np.ndarray] = field(default_factory=list)
    choices: dict[tuple[int, int], Choice] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    spared: set[tuple[int, int]] = field(default_factory=set)
    live: dict[tuple[str, int], dict[int, np.ndarray]] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)
    within: dict[int, frozenset[str]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def fresh(self, size: int) -> np.ndarray:
        start = self.atoms
        self.atoms += size
        return np.arange(start, self.atoms)

    def tie(self, first: np.ndarray, second: np.ndarray, call: int, why: str) -> None:
        """Tie position by position; a position without an atom freezes its partner."""
        if first is second:
            return
        one, two = first >= 0, second >= 0
        both = one & two
        if both.all():
            self.ties.append((first, second))
            return
        self.ties.append((first[both], second[both]))
        self.freeze(np.concatenate([first[one & ~two], second[two & ~one]]), why, call)

    def freeze(self, atoms: np.ndarray, reason: str, call: int) -> None:
        atoms = atoms[atoms >= 0]
        if atoms.size:
            self.freezes.append(Freeze(atoms, reason, call))

    def produce(self, atoms: np.ndarray, name: str) -> None:
        """Declare atoms to be channels that `name` makes; only parameters make channels, constants do not."""
        if name in self.parameters:
            self.produced.append((atoms[atoms >= 0], name))

    def choose(self, key: tuple[int, int], atoms: np.ndarray, options: int, sizes: tuple[int, ...] = ()) -> int:
        """Which of `options` to take here; `options` itself means all were refused.

        Choices of one module with the same `sizes` (queries, keys and values cut into heads) are made together.
        """
        taken = self.decisions.get(key, 0)
        self.choices[key] = Choice(np.unique(atoms[atoms >= 0]), options, taken, sizes)
        return taken

    def choose_groups(self, key: tuple[int, int], atoms: np.ndarray, *, weight: str, first: int) -> int:
        """Whether the units of a grouped convolution are whole groups (0) or inside each (1); `first` is tried first.

        2 means that both were refused. Calls with the same weight choose together.
        """
        taken = self.decisions.get(key, first)
        self.choices[key] = Choice(np.unique(atoms[atoms >= 0]), 2, taken, weight=weight)
        return taken


@dataclass(frozen=True)
class Step:
    """One call as a rule sees it: its arguments by name, their labels, and what it makes."""

    labels: Labels
    call: Call

    @property
    def where(self) -> str:
        name = self.call.name.split("::")[-1]
        return f"{name} in {self.call.module}" if self.call.module else name

    def __getitem__(self, name: str) -> Any:
        return self.call.args.get(name)

    def shape(self, ref: Ref) -> tuple[int, ...]:
        return self.labels.capture.shapes[ref.id]

    def label(self, ref: Ref) -> Label:
        label = self.labels.of[ref.id]
        return [None] * len(self.shape(ref)) if label is None else list(label)

    def source(self, ref: Ref) -> str | None:
        """The parameter that a value was computed from; None for an activation."""
        names = self.labels.capture.sources[ref.id]
        return names[0] if names else None

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        value = self.call.outputs[index]
        return () if value is None else self.labels.capture.shapes[value]

    def emit(self, label: Label, index: int = 0) -> None:
        """Label an output; axes of size one never carry a label."""
        value = self.call.outputs[index]
        if value is None:
            return
        shape = self.labels.capture.shapes[value]
        self.labels.of[value] = [
            axis if axis is not None and size == len(axis.atoms) and size > 1 else None
            for axis, size in zip(label, shape, strict=True)
        ]

    def emit_all(self, label: Label) -> None:
        """Give every output that has as many axes the same label."""
        for index, value in enumerate(self.call.outputs):
            if value is not None:
                fits = len(self.labels.capture.shapes[value]) == len(label)
                self.emit(label if fits else [None] * len(self.out_shape(index)), index)

    def freeze(self, axes: Axis | Iterable[Axis | None] | None, reason: str) -> None:
        for axis in [axes] if axes is None or isinstance(axes, Axis) else axes:
            if axis is not None:
                self.labels.freeze(axis.atoms, f"{reason} ({self.where})", self.call.index)

    def only_live(self, axes: Mapping[int, Axis], reason: str) -> None:
        """Let a statistic see only the living channels of these axes; where it cannot be told, freeze them."""
        capture = self.labels.capture
        site = capture.sites.get(self.call.index - capture.first)
        if site is None:
            self.freeze(axes.values(), reason)
            return
        known = self.labels.live.setdefault(site, {})
        for position, axis in axes.items():
            before = known.setdefault(position, axis.atoms)
            if len(before) == len(axis.atoms):
                self.tie(before, axis.atoms)  # a module that runs twice has one place for both
            else:
                self.labels.freeze(before, f"{reason} ({self.where})", self.call.index)
                self.freeze(axis, reason)
            self.labels.selected.append(axis.atoms)

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        self.labels.tie(first, second, self.call.index, f"joined with a part of fixed size ({self.where})")

    def meet(self, first: Axis | None, second: Axis | None) -> Axis | None:
        """Tie two axes that must have one size; a fixed one freezes the other."""
        if first is None or second is None:
            self.freeze([first, second], "meets a tensor of fixed size, such as the network's input or a constant")
            return None
        self.tie(first.atoms, second.atoms)
        return first


def start(
    capture: Capture,
    model: nn.Module,
    decisions: Mapping[tuple[int, int], int],
    frozen: Sequence[Freeze] = (),
) -> Labels:
    """Labels in which every parameter and buffer axis has its own atoms and nothing is tied."""
    labels = Labels(capture, decisions, [None] * len(capture.shapes))
    labels.parameters = parameter_names(model)
    modules = dict(walk(model))
    for value, names in capture.tensors.items():
        owner, _, leaf = names[0].rpartition(".")
        shape = capture.shapes[value]
        # The taps of a convolution's kernel are not channels.
        if owner.endswith("parametrizations.weight"):
            owner, leaf = owner.removesuffix("parametrizations.weight").rstrip("."), "weight"
        taps = isinstance(modules.get(owner), nn.modules.conv._ConvNd) and leaf in ("weight", "weight_v", "weight_orig")
        label: Label = []
        for axis, size in enumerate(shape):
            if size < 2 or (taps and axis > 1):
                label.append(None)
            else:
                # Masking zeroes parameters; buffers keep their values.
                label.append(Axis(labels.fresh(size), zero=names[0] in labels.parameters))
        labels.of[value] = label
    labels.freezes.extend(frozen)
    return labels
