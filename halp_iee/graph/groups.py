"""From tied atoms to groups: which channels exist, which must go together, which must stay.

The classes of tied atoms are the units. Two units are in one group when they appear
in the same tensor axes equally often. Every axis is then a union of whole groups, so
keeping any non-empty subset of each group leaves no axis empty and every axis's
width is affine in the groups' widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from halp_iee.graph.attributes import SizedAttribute
from halp_iee.graph.calls import Ref
from halp_iee.graph.labels import Axis, Label, Labels
from halp_iee.graph.records import ChannelGroup, Width
from halp_iee.graph.sandbox import walk

NORMS = frozenset({"aten::native_layer_norm", "aten::layer_norm", "aten::rms_norm", "aten::native_group_norm"})
"""Normalisations that the masked network runs on its live channels."""


@dataclass(frozen=True)
class AxisUnits:
    """Which unit of which group stands at each position of one tensor axis.

    Attributes:
        group: index into ``ChannelGraph.groups``; -1 where the position is always kept.
        unit: index of the unit in its group; -1 likewise.
    """

    group: np.ndarray
    unit: np.ndarray


@dataclass(frozen=True)
class Structure:
    """The groups of a network and where their units stand.

    Attributes:
        classes: the unit class of each atom.
        group_of, unit_of: of each class; -1 where it is in no group.
        axes: parameter or buffer name -> one entry an axis, None where nothing is labelled.
        shared: all names of each parameter and buffer.
        spared: (parameter, axis) where masking must not zero: another factor does.
        attributes: numbers of the network's modules that follow its sizes.
        live: places of statistics that see only what lives: (axis from the end, its units).
        normalising: parameters that are weights of normalisations over channels.
        kept_groups: convolutions whose number of groups stays, as their units are positions inside each: module ->
            that number.
    """

    groups: tuple[ChannelGroup, ...]
    classes: np.ndarray
    group_of: np.ndarray
    unit_of: np.ndarray
    axes: Mapping[str, tuple[AxisUnits | None, ...]]
    shared: tuple[tuple[str, ...], ...]
    spared: frozenset[tuple[str, int]] = frozenset()
    attributes: tuple[SizedAttribute, ...] = ()
    live: Mapping[tuple[str, int], tuple[tuple[int, AxisUnits], ...]] = field(default_factory=dict)
    normalising: frozenset[str] = frozenset()
    kept_groups: Mapping[str, int] = field(default_factory=dict)

    def units(self, atoms: np.ndarray) -> AxisUnits:
        """The units at the positions of a labelled axis."""
        known = np.where(atoms >= 0, self.classes[atoms], -1)
        return AxisUnits(np.where(known >= 0, self.group_of[known], -1), np.where(known >= 0, self.unit_of[known], -1))

    def width(self, units: AxisUnits | None, size: int) -> Width:
        """Channels on an axis as a function of the groups' widths."""
        if units is None:
            return Width(fixed=size)
        found, counts = np.unique(units.group[units.group >= 0], return_counts=True)
        terms = tuple(
            (self.groups[group].name, self.groups[group].size, int(count) // self.groups[group].size)
            for group, count in zip(found, counts, strict=True)
        )
        return Width(terms, int((units.group < 0).sum()))

    def alive(self, keep: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """For every group, whether each of its units is kept."""
        masks = []
        for group in self.groups:
            mask = np.ones(group.size, dtype=bool)
            if group.name in keep:
                mask[:] = False
                mask[np.asarray(keep[group.name], dtype=np.int64)] = True
            masks.append(mask)
        return masks

    def live_positions(
        self, keep: Mapping[str, np.ndarray]
    ) -> dict[tuple[str, int], tuple[tuple[int, np.ndarray], ...]]:
        """For every place of a statistic the positions that live on its axes; what is whole is left out."""
        alive, found = self.alive(keep), {}
        for site, places in self.live.items():
            axes = []
            for axis, units in places:
                stays = np.array([g < 0 or alive[g][u] for g, u in zip(units.group, units.unit, strict=True)])
                if not stays.all():
                    axes.append((axis, np.flatnonzero(stays)))
            if axes:
                found[site] = tuple(axes)
        return found

    def positions(self, keep: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray | None, ...]]:
        """For every labelled tensor the positions kept on each axis; None where the axis is whole."""
        alive = self.alive(keep)
        starts = np.cumsum([0, *(len(mask) for mask in alive)])
        flat = np.concatenate([*alive, [True]])
        done: dict[int, np.ndarray | None] = {}

        def kept(units: AxisUnits | None) -> np.ndarray | None:
            if units is None:
                return None
            if id(units) not in done:
                where = np.where(units.group >= 0, starts[units.group] + units.unit, len(flat) - 1)
                mask = flat[where]
                done[id(units)] = None if mask.all() else np.flatnonzero(mask)
            return done[id(units)]

        return {name: tuple(kept(units) for units in axes) for name, axes in self.axes.items()}


def layer_of(parameter: str, modules: Mapping[str, nn.Module]) -> str:
    """The module that a person would name for a parameter: its owner, if that is a layer of its own."""
    owner, _, _ = parameter.rpartition(".")
    if "parametrizations" in owner.split("."):
        owner = owner.split(".parametrizations", 1)[0]
        return owner or parameter
    module = modules.get(owner)
    if owner and module is not None and next(module.children(), None) is None:
        return owner
    return parameter


def _merge(labels: Sequence[Labels]) -> np.ndarray:
    """The connected component of each atom."""
    count = labels[-1].atoms
    pairs = [pair for one in labels for pair in one.ties if pair[0].size]
    if not pairs:
        return np.arange(count)
    rows = np.concatenate([pair[0] for pair in pairs])
    columns = np.concatenate([pair[1] for pair in pairs])
    matrix = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    return connected_components(matrix, directed=False)[1]


def _signatures(families: Sequence[np.ndarray], count: int) -> np.ndarray:
    """A 64-bit fingerprint of the families, with multiplicity, in which each class appears."""
    random = np.random.default_rng(0)
    seeds = random.integers(1, 2**63, size=len(families), dtype=np.uint64) | np.uint64(1)
    total = np.zeros(count, dtype=np.uint64)
    often = np.zeros(count, dtype=np.uint64)
    for seed, family in zip(seeds, families, strict=True):
        np.add.at(often, family, np.uint64(1))
        mixed = seed * (often[family] * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1))
        often[family] = 0
        # What stands several times in the family is assigned several times, the same each time.
        total[family] = total[family] + (mixed ^ (mixed >> np.uint64(29)))
    return total


def _kept_groups(
    labels: Sequence[Labels], modules: Mapping[str, nn.Module], shared: Sequence[tuple[str, ...]]
) -> dict[str, int]:
    """The convolution modules whose number of groups stays, and that number."""
    sources = {name for one in labels for names in one.within.values() for name in names}
    kept = {}
    for names in shared if sources else ():
        for name in names if sources.intersection(names) else ():
            owner = name.rpartition(".")[0]
            if owner.endswith("parametrizations.weight"):
                owner = owner.removesuffix("parametrizations.weight").rstrip(".")
            module = modules.get(owner)
            if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
                kept[owner] = module.groups
    return kept


def form(labels: Sequence[Labels], model: nn.Module, channel_axes: Sequence[np.ndarray]) -> Structure:
    """Make the groups of a network from its labels.

    Args:
        labels: of its captures; all share the atoms of parameters.
        channel_axes: atoms of the activation axes whose widths must be affine in the groups' widths.
    """
    classes = _merge(labels)
    count = int(classes.max()) + 1 if classes.size else 0
    first = labels[0]
    tensors: list[tuple[tuple[str, ...], Label]] = []
    for value, names in first.capture.tensors.items():
        label = first.of[value]
        assert label is not None
        tensors.append((names, label))

    never = np.iinfo(np.int64).max
    order = np.full(count, never)
    made = np.full(count, never)
    offset, makers = 0, [item for one in labels for item in one.produced]
    for number, (atoms, _) in enumerate(makers):
        np.minimum.at(order, classes[atoms], offset + np.arange(len(atoms)))
        np.minimum.at(made, classes[atoms], number)
        offset += len(atoms)

    freezes = [freeze for one in labels for freeze in one.freezes]
    why = np.full(count, len(freezes))
    for number, freeze in enumerate(freezes):
        np.minimum.at(why, classes[freeze.atoms], number)

    seen: dict[int, np.ndarray] = {}
    for atoms in [
        *(axis.atoms for _, label in tensors for axis in label if axis is not None),
        *(atoms[atoms >= 0] for atoms in {id(atoms): atoms for atoms in channel_axes}.values()),
        *(atoms[atoms >= 0] for one in labels for atoms in one.selected),
    ]:
        seen.setdefault(id(atoms), atoms)
    # Many axes carry the same channels: a weight's, its bias's, those of the norm behind it.
    families = {family.tobytes(): family for family in (classes[atoms] for atoms in seen.values())}
    signature = _signatures(list(families.values()), count)
    signature = np.where(why < len(freezes), signature ^ np.uint64(0xD1B54A32D192ED03), signature)

    units = np.flatnonzero(made < never)
    units = units[np.argsort(order[units], kind="stable")]
    group_of, unit_of = np.full(count, -1), np.full(count, -1)
    # Groups are numbered by their first unit.
    _, begins, inverse = np.unique(signature[units], return_index=True, return_inverse=True)
    group_of[units] = np.argsort(np.argsort(begins))[inverse]
    grouped = units[np.argsort(group_of[units], kind="stable")]
    starts = np.searchsorted(group_of[grouped], np.arange(len(begins)))
    unit_of[grouped] = np.arange(len(grouped)) - starts[group_of[grouped]]
    members = np.split(grouped, starts[1:]) if len(grouped) else []

    structure = Structure((), classes, group_of, unit_of, {}, tuple(names for names, _ in tensors))
    alike: dict[bytes, tuple[AxisUnits | None, list[int]]] = {}

    def known(axis: Axis | None) -> tuple[AxisUnits | None, list[int]]:
        """Its units, None if there are none, and their groups.

        One object for all axes with the same units, so that what is kept of them is worked out once.
        """
        if axis is None:
            return None, []
        key = classes[axis.atoms].tobytes()
        if key not in alike:
            units = structure.units(axis.atoms)
            found = np.unique(units.group[units.group >= 0]).tolist()
            alike[key] = (units if found else None, found)
        return alike[key]

    modules = dict(walk(model))
    carried: list[dict[str, None]] = [{} for _ in members]
    axes: dict[str, tuple[AxisUnits | None, ...]] = {}
    for names, label in tensors:
        found = [known(axis) for axis in label]
        if any(those for _, those in found):
            axes.update(dict.fromkeys(names, tuple(units for units, _ in found)))
            layer = layer_of(names[0], modules)
            for _, those in found:
                for number in those:
                    carried[number][layer] = None
    taken: dict[str, int] = {}
    groups = []
    for number, member in enumerate(members):
        base = layer_of(makers[made[member[0]]][1], modules)
        taken[base] = taken.get(base, 0) + 1
        name = base if taken[base] == 1 else f"{base}#{taken[base]}"
        cause = int(why[member].min())
        reason = freezes[cause].reason if cause < len(freezes) else None
        if reason is None and len(member) == 1:
            reason = "its channels can only be removed all together"
        groups.append(ChannelGroup(name, len(member), tuple(carried[number]), reason is None, reason))

    spared = frozenset(
        (name, axis) for one in labels for value, axis in one.spared for name in first.capture.tensors[value]
    )
    live = {
        site: tuple((axis, structure.units(atoms)) for axis, atoms in places.items())
        for one in reversed(labels)
        for site, places in one.live.items()
    }
    normalising = frozenset(
        name
        for one in labels
        for call in one.capture.calls
        if call.name in NORMS and isinstance(call.args.get("weight"), Ref)
        for name in one.capture.tensors.get(call.args["weight"].id, ())
    )
    return Structure(
        tuple(groups),
        classes,
        group_of,
        unit_of,
        axes,
        structure.shared,
        spared,
        live=live,
        normalising=normalising,
        kept_groups=_kept_groups(labels, modules, structure.shared),
    )
