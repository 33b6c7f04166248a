"""Normalisations: per channel (exact), per group of channels (the group is the unit), over channels."""

from __future__ import annotations

import numpy as np

from halp_iee.graph.calls import Ref
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
    if step["training"] or step["running_mean"] is None:
        # Statistics of this very tensor: a standardised weight, for one, has its inputs on these axes.
        others = {number - len(label): one for number, one in enumerate(label) if number != 1 and one is not None}
        if others:
            step.only_live(others, "normalised over all of it together")
    label[1] = None if axis is None else Axis(axis.atoms, zero)
    step.emit(label)


def _knows_its_weight(step: Step) -> bool:
    """Whether the masked network can recognise this normalisation, by its weight, and see only what is live."""
    weight = step["weight"]
    return isinstance(weight, Ref) and weight.id in step.labels.capture.tensors


TOGETHER = "normalised over all its channels together, without a weight of its own"


def layer_norm(step: Step) -> None:
    """Layer and RMS norm over the last axes.

    Over one axis with a weight a channel, the masked network takes its statistics over the live
    channels only (see `masking.LiveNorms`), so channels can go. Otherwise all must stay.
    """
    label = step.label(step["input"])
    count = len(step["normalized_shape"])
    live = count == 1 and _knows_its_weight(step)
    if live:
        axis, zero = _affine(step, label[-1], ("weight", "bias"))
        last: list[Axis | None] = [None if axis is None else Axis(axis.atoms, zero)]
    else:
        step.freeze(label[-count:], TOGETHER)
        for name in ("weight", "bias"):
            if isinstance(step[name], Ref):
                step.freeze(step.label(step[name]), TOGETHER)
        last = [None if axis is None else Axis(axis.atoms, False) for axis in label[-count:]]
    bare = not isinstance(step["bias"], Ref)
    step.emit([*(None if axis is None else Axis(axis.atoms, axis.zero and bare) for axis in label[:-count]), *last])


def group_norm(step: Step) -> None:
    """Statistics over G groups of channels: a unit is a whole group, so its statistics never change.

    One group is a layer norm over the channels, and treated as one.
    """
    ref = step["input"]
    label, groups = step.label(ref), step["group"] if step["group"] is not None else step["num_groups"]
    axis, zero = _affine(step, label[1], ("weight", "bias"))
    if axis is not None:
        if groups == 1 and not _knows_its_weight(step):
            step.freeze(axis, TOGETHER)
        rows = axis.atoms.reshape(groups if groups > 1 else len(axis.atoms), -1)
        for column in range(1, rows.shape[1]):
            step.tie(np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, column]))
        axis = Axis(axis.atoms, zero)
    label[1] = axis
    step.emit(label)


def weight_norm(step: Step) -> None:
    """w = g v / |v|, with one g for each position of axis `dim`."""
    label, gain, dim = step.label(step["v"]), step.label(step["g"]), step["dim"]
    if step["v"].id in step.labels.capture.tensors:
        # A row of zeros has no direction: 0/0. The zero in g is enough.
        step.labels.spared.add((step["v"].id, dim))
    else:
        step.freeze(label[dim], "a removed channel would divide by zero here")
    if label[dim] is not None or gain[dim] is not None:
        label[dim] = step.meet(label[dim], gain[dim])
    step.emit(label)


RULES: dict[str, Rule] = {
    **{
        f"aten::{name}": Rule("batch_norm", batch_norm)
        for name in [
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
            "miopen_batch_norm",
            "batch_norm",
            "_batch_norm_with_update",
            "_batch_norm_no_update",
            "_native_batch_norm_legit_functional",
        ]
    },
    "aten::_weight_norm_interface": Rule("other", weight_norm),
    "aten::native_layer_norm": Rule("layer_norm", layer_norm),
    "aten::layer_norm": Rule("layer_norm", layer_norm),
    "aten::rms_norm": Rule("layer_norm", layer_norm),
    "aten::_fused_rms_norm": Rule("layer_norm", layer_norm),
    "aten::native_group_norm": Rule("group_norm", group_norm),
    "aten::group_norm": Rule("group_norm", group_norm),
}
