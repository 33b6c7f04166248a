"""Check a selection of units before anything is done with it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import torch

from halp_iee.errors import GraphError
from halp_iee.graph.records import ChannelGroup, Keep

WHAT = "The selection of units cannot be used"


def checked(keep: Keep, groups: Sequence[ChannelGroup]) -> dict[str, np.ndarray]:
    """The selection as sorted int64 arrays, groups that are whole left out.

    Raises:
        GraphError: an unknown group, an index out of range or named twice, nothing kept, or part of a frozen group.
    """
    if not isinstance(keep, dict) and not hasattr(keep, "items"):
        raise GraphError(WHAT, f"it is a {type(keep).__name__}", "Pass {group name: indices of the units kept}")
    known = {group.name: group for group in groups}
    result: dict[str, np.ndarray] = {}
    for name, indices in keep.items():
        group = known.get(name)
        if group is None:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.3)
            hint = f"Did you mean {', '.join(near)}?" if near else "See graph.groups for the names"
            raise GraphError(WHAT, f"there is no group named {name!r}", hint)
        units = _integers(name, indices)
        if units.size == 0:
            raise GraphError(WHAT, f"it keeps nothing of group {name!r}", "Keep at least one unit of every group")
        outside = units[(units < 0) | (units >= group.size)]
        if outside.size:
            raise GraphError(
                WHAT,
                f"group {name!r} has units 0 to {group.size - 1}, not {int(outside[0])}",
                "Use indices within the group's size",
            )
        units, counts = np.unique(units, return_counts=True)
        if (counts > 1).any():
            twice = int(units[counts > 1][0])
            raise GraphError(WHAT, f"group {name!r} names unit {twice} more than once", "Name each unit once")
        if units.size < group.size:
            if not group.prunable:
                raise GraphError(
                    WHAT, f"group {name!r} must stay whole: {group.reason}", "Leave it out of the selection"
                )
            result[name] = units
    return result


def _integers(name: str, indices: object) -> np.ndarray:
    array = indices.detach().cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise GraphError(
            WHAT,
            f"the units of group {name!r} are {array.dtype} of shape {array.shape}",
            "Pass a one-dimensional list of integer indices (for a boolean mask: numpy.flatnonzero(mask))",
        )
    return array.astype(np.int64)
