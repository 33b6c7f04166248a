"""`trace` and `ChannelGraph`: the channel structure of a network, and what can be done with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.errors import GraphError
from halp_iee.graph.branches import Branch, find_branches
from halp_iee.graph.calls import Capture
from halp_iee.graph.capture import capture_model
from halp_iee.graph.groups import AxisUnits, Structure
from halp_iee.graph.keep import checked
from halp_iee.graph.labels import Labels
from halp_iee.graph.masking import zeroed, zeroed_copy
from halp_iee.graph.records import ChannelGroup, Keep, Op
from halp_iee.graph.sandbox import (
    first_line,
    map_tensors,
    named_tensors,
    parameter_names,
    tensors_in,
    without_collection,
)
from halp_iee.graph.structure import find_structure


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What one run of a network revealed about its channels.

    Attributes:
        model: the traced network itself, untouched.
        example_inputs: (args, kwargs) as the network was called.
        groups: the units that can be removed, and those that cannot with the reason.
        ops: what ran, in order.
        unknown: operations without a rule -> where they ran; they froze what they read.
        structure: where every unit stands in every tensor.
        labels: the channels on the axes of every value of the run.
        notes: what could not be seen, in words: parts that run only in training and cannot be run so.
    """

    model: nn.Module
    example_inputs: tuple[tuple[Any, ...], dict[str, Any]]
    groups: tuple[ChannelGroup, ...]
    ops: tuple[Op, ...]
    unknown: Mapping[str, str]
    structure: Structure
    labels: Labels = field(repr=False)
    notes: tuple[str, ...] = ()

    def group(self, name: str) -> ChannelGroup:
        """The group of this name.

        Raises:
            GraphError: there is none; the nearest names are suggested.
        """
        checked({name: [0]} if name not in self._by_name else {}, self.groups)
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """Residual branches that can be removed whole: by keeping nothing of any of their groups."""
        return find_branches(self)

    @property
    def axes(self) -> Mapping[str, tuple[AxisUnits | None, ...]]:
        """Parameter or buffer name -> for each axis which unit stands where; None for an axis without units."""
        return self.structure.axes

    @property
    def shared_names(self) -> tuple[tuple[str, ...], ...]:
        """All names of each parameter and buffer; several where it is shared."""
        return self.structure.shared

    @cached_property
    def full_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every parameter and buffer of the full network."""
        return MappingProxyType({name: tuple(tensor.shape) for name, tensor in named_tensors(self.model).items()})

    @property
    def full_widths(self) -> dict[str, int]:
        return {group.name: group.size for group in self.groups}

    def widths(self, keep: Keep) -> dict[str, int]:
        """Units left in every group."""
        from halp_iee.slim.branches import split

        removed, rest = split(self, keep)
        gone = {name: 0 for branch in removed for name in branch.groups}
        kept = checked(rest, self.groups)
        kept_whole = {group.name: group.size for group in self.groups}
        return {**kept_whole, **{name: len(units) for name, units in kept.items()}, **gone}

    def positions(self, keep: Keep) -> dict[str, tuple[np.ndarray | None, ...]]:
        """For every labelled parameter and buffer, the positions kept on each axis; None: the axis stays whole."""
        return self.structure.positions(checked(keep, self.groups))

    def numbers(self, keep: Keep) -> dict[tuple[str, str, int], int]:
        """What the sizes that modules keep as numbers become: (module, attribute, item or -1) -> value."""
        alive = self.structure.alive(checked(keep, self.groups))
        return {(a.module, a.name, a.item): a.at(alive) for a in self.structure.attributes}

    @contextmanager
    def masked(self, keep: Keep, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """Zero the units that are not kept, in every parameter and on every axis.

        Args:
            keep: group name -> units that stay; groups not named stay whole. Nothing of every group of one of
                `branches`: then that branch adds nothing.
            model: another network of the same structure; default the traced one.

        Raises:
            GraphError: `keep` is not valid.
        """
        network = self.model if model is None else model
        if _removes(keep):
            from halp_iee.slim.branches import split, zeroed_branches

            removed, rest = split(self, keep)
            with self.masked(rest, network), zeroed_branches(network, removed):
                yield network
            return
        live = self.structure.live_positions(checked(keep, self.groups))
        with zeroed(network, self.structure, self.positions(keep), self.full_shapes, live):
            yield network

    @contextmanager
    def masked_copy(self, keep: Keep, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """As `masked`, on a copy that lives as long as the context; the network itself is not touched."""
        network = self.model if model is None else model
        live = self.structure.live_positions(checked(keep, self.groups))
        with zeroed_copy(network, self.structure, self.positions(keep), self.full_shapes, live) as copied:
            yield copied

    def slim(self, keep: Keep, model: nn.Module | None = None) -> nn.Module:
        """A new, ordinary, smaller network that computes what the masked one does.

        Args:
            keep: group name -> units that stay; groups not named stay whole. Nothing of every group of one of
                `branches`: then that branch is not there any more.
            model: a network of the same structure and sizes whose values to take; default the traced one.

        Raises:
            GraphError: `keep` is not valid, or masked and slim do not agree.
        """
        from halp_iee.slim.branches import slim_without
        from halp_iee.slim.build import build_slim

        with without_collection():
            if _removes(keep):
                return slim_without(self, keep, model)
            return build_slim(self, checked(keep, self.groups), model)

    def __repr__(self) -> str:
        free = sum(group.prunable for group in self.groups)
        return (
            f"ChannelGraph({type(self.model).__name__}: {len(self.ops)} operations, {len(self.groups)} groups, "
            f"{free} prunable)"
        )


def _removes(keep: Keep) -> bool:
    """Whether nothing is kept of some group."""
    return isinstance(keep, Mapping) and any(np.ndim(units) == 1 and len(units) == 0 for units in keep.values())


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How to call the network: a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), {str(key): value for key, value in example_inputs.items()}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise GraphError(
        "The network cannot be traced",
        f"the example inputs are a {type(example_inputs).__name__}",
        "Pass a tensor, a tuple of arguments, or a dict of keyword arguments",
    )


def unused_parameters(model: nn.Module, capture: Capture) -> list[str]:
    """The parameters that took no part in the run, such as those of heads used in training only."""
    read = {ref.id for call in capture.calls for ref in call.refs}
    parameters = parameter_names(model)
    return [names[0] for value, names in capture.tensors.items() if value not in read and names[0] in parameters]


def _in_training(model: nn.Module, capture: Capture, args: Any, kwargs: Any) -> tuple[list[Capture], tuple[str, ...]]:
    """What else runs in train mode, where something did not run in eval mode; a failure is told in words."""
    unused = unused_parameters(model, capture)
    if not unused:
        return [], ()
    first, why = len(capture.calls) + 1, ""
    given = [(args, kwargs)]
    with contextlib.suppress(RuntimeError):  # one example is too few for a batch norm that trains
        given.append(map_tensors((args, kwargs), lambda one: torch.cat([one, one]) if one.ndim else one))
    for data in (False, True):  # shapes alone are quick, also for twice the examples
        for some, named_some in given:
            try:
                return [capture_model(model, some, named_some, training=True, first=first, data=data)], ()
            except (GraphError, RuntimeError) as error:
                if data and not why:
                    why = error.why if isinstance(error, GraphError) else first_line(error)
    named = f"{', '.join(unused[:3])} and {len(unused) - 3} more" if len(unused) > 3 else ", ".join(unused)
    note = (
        f"{named}: not used in eval mode, and in train mode {why}; it stays whole, and may not fit the "
        f"slim network where it is used"
    )
    return [], (note,)


def _foreign(model: nn.Module, captures: Sequence[Capture]) -> tuple[str, ...]:
    """A note on a forward pass that has nothing to do with the network that it hangs on."""
    count = sum(1 for _ in model.parameters())
    if not count or any(len(unused_parameters(model, capture)) < count for capture in captures):
        return ()
    return (
        "the forward pass used none of the network's parameters, so nothing can be removed: it may be a method "
        "of another network that was put in its place",
    )


def trace(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """Find a network's channel structure by running it once.

    The network is run in eval mode on tensors without data (on the real ones if it
    looks at them); it is left as it was: mode, parameters, buffers, random state.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        GraphError: the network does not run on these inputs.
    """
    if not isinstance(model, nn.Module):
        raise GraphError(
            "The network cannot be traced",
            f"it is a {type(model).__name__}",
            "Pass a torch.nn.Module instance",
        )
    args, kwargs = call_arguments(example_inputs)
    given = list(tensors_in((args, kwargs)))
    if given and not any(tensor.numel() for tensor in given):
        raise GraphError("The network cannot be traced", "the example inputs are empty", "Pass at least one example")
    with torch.no_grad(), without_collection():
        captures = [capture_model(model, args, kwargs)]
        more, notes = _in_training(model, captures[0], args, kwargs)
        captures += more
        notes += _foreign(model, captures)
        search = find_structure(model, args, kwargs, captures)
    unknown = {name: where for labels in search.labels for name, where in labels.unknown.items()}
    return ChannelGraph(
        model=model,
        example_inputs=(args, kwargs),
        groups=search.structure.groups,
        ops=search.operations.records(search.structure),
        unknown=MappingProxyType(unknown),
        structure=search.structure,
        labels=search.labels[0],
        notes=notes,
    )
