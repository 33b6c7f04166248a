"""A structure is which units of which groups are active: how structures are counted and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from halp_iee.errors import TargetError

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph

Units = dict[str, np.ndarray]
"""Group name -> sorted indices of units."""


def prunable_sizes(graph: ChannelGraph) -> dict[str, int]:
    """How many units every group has that can be pruned.

    Raises:
        TargetError: there is no such group.
    """
    sizes = {g.name: g.size for g in graph.groups if g.prunable}
    if not sizes:
        raise TargetError(
            "nothing in this network can be pruned",
            "every channel group is frozen",
            "`halp-iee graph` lists each group with the reason",
        )
    return sizes


def from_lists(lists: Mapping[str, Sequence[int]]) -> Units:
    """The structure that a checkpoint holds as plain lists."""
    return {name: np.asarray(units, dtype=np.int64) for name, units in lists.items()}


def to_lists(units: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Inverse of `from_lists`."""
    return {name: chosen.tolist() for name, chosen in units.items()}


def count(units: Mapping[str, np.ndarray]) -> int:
    """Units of all groups together."""
    return sum(len(u) for u in units.values())


def overlap(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> int:
    """Units that are in both."""
    return sum(len(np.intersect1d(units, b[name])) for name, units in a.items() if name in b)


def iou(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """Intersection over union, over the units of all groups.

    Source: the IEE paper's measure of how much consecutive structures agree.
    """
    both = overlap(a, b)
    return both / max(1, count(a) + count(b) - both)
