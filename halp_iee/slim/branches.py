"""Remove residual branches whole, and prove that what is left computes what the masked network does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from halp_iee.errors import GraphError
from halp_iee.graph.branches import Branch
from halp_iee.graph.copies import duplicate, skeleton
from halp_iee.graph.keep import checked
from halp_iee.graph.records import ChannelGroup, Keep
from halp_iee.graph.sandbox import first_line
from halp_iee.slim.build import RECIPE, disagreement, outputs, random_like

if TYPE_CHECKING:
    from halp_iee.graph.graph import ChannelGraph

WHAT = "The network cannot be slimmed"


def removed_by(keep: Keep, groups: Sequence[ChannelGroup]) -> set[str]:
    """The groups of which a selection keeps nothing."""
    if not hasattr(keep, "items"):
        checked(keep, groups)  # says what is wrong with it
    known = {group.name for group in groups}
    return {name for name, units in keep.items() if name in known and 0 in np.shape(units)}


def split(graph: ChannelGraph, keep: Keep) -> tuple[list[Branch], dict[str, Any]]:
    """The branches that a selection removes, and the rest of it.

    Raises:
        GraphError: it keeps nothing of a group that is not part of a removed branch, or removes half a branch.
    """
    empty = removed_by(keep, graph.groups)
    branches = [branch for branch in graph.branches if empty.issuperset(branch.groups)]
    left = empty - {name for branch in branches for name in branch.groups}
    if left:
        name = min(left)
        partly = next((branch for branch in graph.branches if name in branch.groups), None)
        raise GraphError(
            "The selection of units cannot be used",
            f"it keeps nothing of group {name!r}",
            "Keep at least one unit of every group"
            if partly is None
            else f"Keep nothing of {', '.join(map(repr, partly.groups))} either, which removes {partly.module!r}",
        )
    return branches, {name: units for name, units in keep.items() if name not in empty}


def without(model: nn.Module, removed: Mapping[str, str]) -> nn.Module:
    """Take branches out of a network, in place: module -> what of it stays (see ``Branch``).

    Raises:
        GraphError: the network has no such module.
    """
    for name, stays in removed.items():
        try:
            parent = model.get_submodule(name.rpartition(".")[0])
            module = parent._modules[name.rpartition(".")[2]]
            left = nn.Identity() if not stays or module is None else module.get_submodule(stays)
        except (AttributeError, KeyError):
            raise GraphError(
                "The branch cannot be removed", f"the network has no module {name!r} with {stays!r}", "Use its own"
            ) from None
        parent._modules[name.rpartition(".")[2]] = left
    return model


@contextmanager
def zeroed_branches(model: nn.Module, branches: Sequence[Branch]) -> Iterator[nn.Module]:
    """The network with all parameters of these branches zero; they are put back afterwards."""
    parameters = [p for branch in branches for p in model.get_submodule(branch.module).parameters()]
    before = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
        yield model
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


def proved(graph: ChannelGraph, branches: Sequence[Branch]) -> bool:
    """Whether the network without these branches computes what it does with their parameters zero."""
    if not branches:
        return True
    args, kwargs = graph.example_inputs
    try:
        shell, bare = duplicate(graph.model), without(duplicate(graph.model), _names(branches))
        for one_args, one_kwargs in ((args, kwargs), random_like((args, kwargs))):
            with zeroed_branches(shell, branches):
                wanted = outputs(shell, one_args, one_kwargs)
            if disagreement(wanted, outputs(bare, one_args, one_kwargs)) > 1:
                return False
    except Exception:  # whatever a network's own code raises: then it does not run without them
        return False
    return True


def _names(branches: Sequence[Branch]) -> dict[str, str]:
    return {branch.module: branch.stays for branch in branches}


def slim_without(graph: ChannelGraph, keep: Keep, model: nn.Module | None = None) -> nn.Module:
    """A network without the branches of which ``keep`` keeps nothing, slimmed to the rest of it.

    Raises:
        GraphError: as ``split``; or it does not compute what the masked network does.
    """
    from halp_iee.graph.graph import trace

    branches, rest = split(graph, keep)
    full = graph.model if model is None else model
    args, kwargs = graph.example_inputs
    bare = without(duplicate(full), _names(branches))
    again = trace(bare, kwargs if kwargs and not args else args)
    small = again.slim(_carried(graph, again, rest))
    recipe = small.__dict__[RECIPE]
    recipe["removed"] = {**recipe.get("removed", {}), **_names(branches)}
    shell = skeleton(full)
    for one_args, one_kwargs in ((args, kwargs), random_like((args, kwargs))):
        with graph.masked(keep, shell):
            wanted = outputs(shell, one_args, one_kwargs)
        try:
            got = outputs(small, one_args, one_kwargs)
        except Exception as error:  # whatever the network's own code raises
            raise GraphError(
                WHAT, f"without {branches[0].module} it failed: {first_line(error)}", "Keep that branch"
            ) from error
        if disagreement(wanted, got) > 1:
            raise GraphError(
                WHAT,
                f"masked and slim differ by {disagreement(wanted, got):.3g} times what is tolerated",
                f"Keep the branches {', '.join(branch.module for branch in branches[:3])}",
            )
    return small


def _carried(graph: ChannelGraph, again: ChannelGraph, keep: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A selection of the whole network in terms of what is left of it, where groups may be named otherwise."""
    whole = {layer: group for group in graph.groups for layer in group.layers}
    carried = {}
    for group in again.groups:
        same = [g for g in graph.groups if g.size == group.size and set(group.layers) <= set(g.layers)]
        source = same[0] if same else whole.get(group.layers[0]) if group.layers else None
        if source is not None and source.name in keep:
            carried[group.name] = np.asarray(keep[source.name])
    return carried
