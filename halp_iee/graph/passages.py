"""Which groups everything must pass: in a network without shortcuts all of them, in a residual one the trunk's."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halp_iee.graph.graph import ChannelGraph
    from halp_iee.graph.records import Op


def passages(graph: ChannelGraph) -> frozenset[str]:
    """Prunable groups without whose channels an output that depends on the input no longer would.

    A residual branch, one of several parallel ones, or the gate of a squeeze-and-excite can be narrow and what
    they add is lost; a passage that is narrow holds up everything. An operation carries a group when all channels of
    its output are the group's; a value arrives where one of the values that it is made of does. What is computed and
    then dropped counts as an output.
    """
    made = {value for op in graph.ops for value in op.outputs}
    read = {value for op in graph.ops for value in op.inputs}
    entries = read - made
    whole = _arrives(graph.ops, entries, None)
    # The last operations; a side result that nobody reads, such as a normalisation's statistics, is no output.
    ends = whole & {value for op in graph.ops if read.isdisjoint(op.outputs) for value in op.outputs}
    carried = {name for op in graph.ops if (name := _carried(op)) is not None}
    return frozenset(
        group.name
        for group in graph.groups
        if group.prunable and group.name in carried and not ends <= _arrives(graph.ops, entries, group.name)
    )


def _carried(op: Op) -> str | None:
    """The group whose channels are all that the operation's output has."""
    groups = set(op.c_out.groups)
    return groups.pop() if len(groups) == 1 and op.c_out.fixed == 0 else None


def _arrives(ops: tuple[Op, ...], entries: Set[int], without: str | None) -> set[int]:
    """Values that depend on the input when nothing of one group is there; operations are in execution order."""
    arrived = set(entries)
    for op in ops:
        if (without is None or _carried(op) != without) and not arrived.isdisjoint(op.inputs):
            arrived.update(op.outputs)
    return arrived
