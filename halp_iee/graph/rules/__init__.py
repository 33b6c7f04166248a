"""How each family of operations carries, ties and freezes channels.

To teach the graph an operation, write one function of a `Step` in the file of its
family and add one line to that file's `RULES`. An operation without a rule is named
in `ChannelGraph.unknown` and freezes what it reads.
"""

from __future__ import annotations

from halp_iee.graph.labels import Step
from halp_iee.graph.rules import (
    contraction,
    elementwise,
    indexing,
    norm,
    recurrent,
    reduction,
    shape,
    transforms,
    windows,
)
from halp_iee.graph.rules.base import Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **contraction.RULES,
    **norm.RULES,
    **reduction.RULES,
    **shape.RULES,
    **indexing.RULES,
    **windows.RULES,
    **transforms.RULES,
    **recurrent.RULES,
}
"""Operation name, in-place variants and overloads folded together -> its kind and rule."""


def unknown(step: Step) -> None:
    """An operation without a rule: everything it reads keeps its size."""
    for ref in step.call.refs:
        step.freeze(step.label(ref), "read by an operation without a rule")


__all__ = ["RULES", "Rule", "unknown"]
