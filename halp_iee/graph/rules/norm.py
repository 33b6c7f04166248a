"""Normalisations: per channel (exact), per group of channels (the group is the unit), over channels."""

from __future__ import annotations

import numpy as np

from halp_iee.graph.capture import Ref
from halp_iee.graph.labels import Axis, Step
from halp_iee.graph.rules.base import Rule


def _affine(step: Step, axis: Axis | None, names: tuple[str, ...]) -> tuple[Axis | None, bool]:
    """Tie an axis to per-channel tensors; also whether weight and bias zero what is removed."""
    zero = isinstance(step["weight"], Ref)
    for name in names:
        ref = step[name]
        if not isinstance(ref, Ref):
            continue
        label = step.label(ref)
        other = label[0] if label else None
        if axis is not None or other is not None:
            axis = step.meet(axis, other)
        if name in ("weight", "bias"):
            zero = zero and other is not None and other.zero
    return axis, zero


def batch_norm(step: Step) -> None:
    """Each channel by its own statistics: every per-channel tensor is tied to the channels."""
    ref = step["input"] if step["input"] is not None else step["self"]
    label = step.label(ref)
    axis, zero = _affine(step, label[1], ("weight", "bias", "running_mean", "running_var"))
    label[1] = None if axis is None else Axis(axis.atoms, zero)
    step.emit(label)


def layer_norm(step: Step) -> None:
    """Statistics over the last axes: their channels must all stay."""
    label = step.label(step["input"])
    count = len(step["normalized_shape"])
    for position in range(1, count + 1):
        if label[-position] is not None:
            step.freeze(label[-position], "normalised over all its channels together")
    for name in ("weight", "bias"):
        if isinstance(step[name], Ref):
            step.freeze(step.label(step[name]), "normalised over all its channels together")
    bare = not isinstance(step["bias"], Ref)
    label = [None if axis is None else Axis(axis.atoms, axis.zero and bare) for axis in label[:-count]]
    kept = step.label(step["input"])[-count:]
    step.emit([*label, *(None if axis is None else Axis(axis.atoms, False) for axis in kept)])


def group_norm(step: Step) -> None:
    """Statistics over G groups of channels: a unit is a whole group, so its statistics never change."""
    ref = step["input"]
    label, groups = step.label(ref), step["group"] if step["group"] is not None else step["num_groups"]
    axis, zero = _affine(step, label[1], ("weight", "bias"))
    if axis is not None:
        if groups == 1:
            step.freeze(axis, "normalised over all its channels together")
        rows = axis.atoms.reshape(groups, -1)
        for column in range(1, rows.shape[1]):
            step.tie(np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, column]))
        axis = Axis(axis.atoms, zero)
    label[1] = axis
    step.emit(label)


RULES: dict[str, Rule] = {
    **{
        f"aten::{name}": Rule("batch_norm", batch_norm)
        for name in (
            "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
            "miopen_batch_norm batch_norm _batch_norm_with_update _batch_norm_no_update "
            "_native_batch_norm_legit_functional"
        ).split()
    },
    "aten::native_layer_norm": Rule("layer_norm", layer_norm),
    "aten::layer_norm": Rule("layer_norm", layer_norm),
    "aten::rms_norm": Rule("layer_norm", layer_norm),
    "aten::_fused_rms_norm": Rule("layer_norm", layer_norm),
    "aten::native_group_norm": Rule("group_norm", group_norm),
    "aten::group_norm": Rule("group_norm", group_norm),
}
