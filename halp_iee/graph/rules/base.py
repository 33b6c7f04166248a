"""What every rule file shares: the `Rule` record and alignment under broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from halp_iee.graph.calls import Ref
from halp_iee.graph.labels import Axis, Label, Step


@dataclass(frozen=True)
class Rule:
    """A family's name, as in `Op.kind`, and the function that applies it."""

    kind: str
    apply: Callable[[Step], None]


def broadcast(step: Step, refs: Sequence[Ref], zero: Callable[[list[bool | None]], bool]) -> Label:
    """Tie tensors position by position under broadcasting.

    Args:
        zero: given, for one axis, whether each operand holds zeros at removed
            positions (None: the operand does not have the axis), says whether the result does.

    Returns:
        The label of the result, aligned to the longest shape.
    """
    shapes = [step.shape(ref) for ref in refs]
    labels = [step.label(ref) for ref in refs]
    ndim = max(len(shape) for shape in shapes)
    result: Label = []
    for axis in range(-ndim, 0):
        sizes = [shape[axis] if len(shape) >= -axis else 1 for shape in shapes]
        size = max(sizes)
        if size == 1 or 0 in sizes:
            result.append(None)
            continue
        present = [label[axis] if sizes[i] == size else None for i, label in enumerate(labels) if len(label) >= -axis]
        carried = [axis_label for axis_label in present if axis_label is not None]
        if not carried:
            result.append(None)
            continue
        if sum(one == size for one in sizes) > len(carried):
            step.freeze(carried, "meets a tensor of fixed size, such as the network's input or a constant")
            result.append(None)
            continue
        for other in carried[1:]:
            step.tie(carried[0].atoms, other.atoms)
        zeros: list[bool | None] = []
        for i, label in enumerate(labels):
            has = sizes[i] == size and len(label) >= -axis
            found = label[axis] if has else None
            zeros.append(found.zero if found is not None else None)
        result.append(Axis(carried[0].atoms, zero(zeros)))
    return result


def normal(axis: int, ndim: int) -> int:
    """An axis counted from the front."""
    return axis + ndim if axis < 0 else axis


def all_zero(zeros: list[bool | None]) -> bool:
    return all(zero is True for zero in zeros)


def any_zero(zeros: list[bool | None]) -> bool:
    return any(zero is True for zero in zeros)


def never_zero(_zeros: list[bool | None]) -> bool:
    return False


def with_zero(label: Label, zero: bool) -> Label:
    """The same channels with another answer to what removed positions hold."""
    return [None if axis is None else Axis(axis.atoms, axis.zero and zero) for axis in label]


def tie_across(step: Step, axis: Axis | None, blocks: int) -> Axis | None:
    """Tie the j-th positions of all of `blocks` equal blocks, such as gates; returns the axis of one."""
    if axis is None:
        return None
    rows = axis.atoms.reshape(blocks, -1)
    for row in rows[1:]:
        step.tie(rows[0], row)
    return Axis(np.ascontiguousarray(rows[0]), axis.zero)
