"""Grouped convolutions: what a unit of one is, a whole convolution group or one position inside each of them."""

from __future__ import annotations

import numpy as np

from halp_iee.graph.labels import Axis, Label, Step
from halp_iee.graph.rules.base import tie_across

WHOLE, WITHIN = 0, 1
"""The options of a choice: units are whole convolution groups, or positions inside each."""

COARSE = 16
"""A convolution group at least this many times as wide as there are groups is too coarse a unit to begin with."""


def contract(step: Step, first: Axis | None, second: Axis | None) -> None:
    """Two axes summed over together: tied; exact once either holds zeros at removed positions."""
    met = step.meet(first, second)
    if met is not None and second is not None and not (met.zero or second.zero):
        step.freeze(met, "summed over where removed channels are not zero")


def tie_blocks(step: Step, atoms: np.ndarray, blocks: int) -> np.ndarray:
    """Tie the positions inside each of `blocks` equal blocks; returns one atom a block."""
    rows = atoms.reshape(blocks, -1)
    for column in range(1, rows.shape[1]):
        step.tie(rows[:, 0], rows[:, column])
    return np.ascontiguousarray(rows[:, 0])


def grouped(step: Step, read: Axis | None, weight: Label, groups: int, transposed: bool) -> Axis | None:
    """A convolution with G > 1 groups; returns the axis of its output's channels.

    What a unit is, is a choice, except where only one way makes units:

    - whole: one convolution group. Its inputs and its outputs live and die together, so G shrinks and the channels of
      each group stay. Depthwise, with any multiplier, is the case of one input a group.
    - within: G stays. A unit of the input is one position inside each group, position j of all G groups together; a
      unit of the output likewise and independently: in / G units and out / G units.
    """
    size_in, size_out = step.shape(step["input"])[1] // groups, step.out_shape()[1] // groups
    into, made = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
    free_in = size_in > 1 and read is not None and into is not None
    if not free_in and (size_out == 1 or made is None):
        return _whole(step, read, weight, groups, transposed)
    coarse = min(size_in, size_out) >= COARSE * groups
    atoms = np.concatenate([axis.atoms for axis in (read, *weight[:2]) if axis is not None])
    names = step.labels.capture.sources[step["weight"].id]
    taken = step.labels.choose_groups(
        (step.call.index, 0), atoms, weight=names[0] if names else "", first=WITHIN if coarse else WHOLE
    )
    if taken != WITHIN:  # also where both were refused: then the reason of the first is the one to tell
        return _whole(step, read, weight, groups, transposed)
    step.labels.within[step.call.index] = frozenset(names)
    return _within(step, read, into, made, groups, transposed)


def _whole(step: Step, read: Axis | None, weight: Label, groups: int, transposed: bool) -> Axis | None:
    out_size = step.out_shape()[1]
    step.freeze(weight[1], "the channels within one convolution group")
    whole = weight[0]
    if whole is None:
        step.freeze(read, "read by a grouped convolution of fixed size")
        return None
    heads = tie_blocks(step, whole.atoms, groups)
    if read is None:
        step.freeze(whole, "a grouped convolution of a tensor of fixed size, such as the network's input")
    else:
        step.tie(heads, tie_blocks(step, read.atoms, groups))
    if len(whole.atoms) == out_size and not transposed:
        return whole
    return Axis(np.repeat(heads, out_size // groups), whole.zero)


def _within(
    step: Step, read: Axis | None, into: Axis | None, made: Axis | None, groups: int, transposed: bool
) -> Axis | None:
    size_in, size_out = step.shape(step["input"])[1] // groups, step.out_shape()[1] // groups
    if size_in == 1:
        step.freeze([read, into], "each group of a convolution reads one channel of it")
    else:
        contract(step, tie_across(step, read, groups), tie_across(step, into, groups) if transposed else into)
    if made is None:
        return None
    if transposed:
        return Axis(np.tile(made.atoms, groups), made.zero)
    if size_out == 1:
        step.freeze(made, "each group of a convolution makes one channel")
        return None
    tie_across(step, made, groups)
    return made
