"""Operations along axes: pooling, resizing, padding, sums and means, softmax, sorting."""

from __future__ import annotations

import numpy as np

from halp_iee.graph.calls import Ref
from halp_iee.graph.labels import NO_ATOM, Axis, Label, Step
from halp_iee.graph.rules.base import Rule, normal


def _dims(step: Step, ndim: int) -> list[int]:
    dim = step["dim"]
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(ndim))
    return sorted({normal(axis, ndim) for axis in (dim if isinstance(dim, (list, tuple)) else [dim])})


def _reduced(step: Step, label: Label, dims: list[int]) -> None:
    """Emit a reduction's outputs: with its axes kept at size one, or dropped."""
    dropped = [axis for i, axis in enumerate(label) if i not in dims]
    for index, value in enumerate(step.call.outputs):
        if value is None:
            continue
        if len(step.out_shape(index)) == len(label):
            step.emit([None if i in dims else axis for i, axis in enumerate(label)], index)
        elif len(step.out_shape(index)) == len(dropped):
            step.emit(dropped, index)


def total(step: Step) -> None:
    """Sums and norms: removed channels add nothing where they hold zeros."""
    label = step.label(step["self"])
    dims = _dims(step, len(label))
    for axis in (label[i] for i in dims):
        if axis is not None and not axis.zero:
            step.freeze(axis, "summed over where removed channels are not zero")
    _reduced(step, label, dims)


def statistic(step: Step) -> None:
    """Means, extremes, variances, products: removed channels would count, so the masked network leaves them out."""
    label = step.label(step["self"])
    dims = _dims(step, len(label))
    axes = {i - len(label): axis for i in dims if (axis := label[i]) is not None}
    if axes:
        step.only_live(axes, "reduced over all its channels together")
    zero = step.call.name not in ("aten::prod", "aten::logsumexp", "aten::argmax", "aten::argmin")
    _reduced(step, [None if a is None else Axis(a.atoms, a.zero and zero) for a in label], dims)


def along(step: Step) -> None:
    """softmax, cumsum, sort, flip and the like: one axis is mixed, the others pass."""
    ref = step["self"] if step["self"] is not None else step["input"]
    label = step.label(ref)
    dims = _dims(step, len(label)) if step["dims"] is None else [normal(d, len(label)) for d in step["dims"]]
    step.freeze([label[i] for i in dims], "mixed over all its channels together")
    kept = "softmax" not in step.call.name
    step.emit_all([None if a is None or i in dims else Axis(a.atoms, a.zero and kept) for i, a in enumerate(label)])


def spatial(step: Step) -> None:
    """Pooling and resizing over the trailing axes; batch and channels pass."""
    ref = step["self"] if step["self"] is not None else step["input"]
    label = step.label(ref)
    lead = 2 if len(label) > 3 or (len(label) == 3 and "2d" not in step.call.name) else 1
    for i, axis in enumerate(label[lead:], lead):
        if axis is not None and step.shape(ref)[i] > 1:
            step.freeze(axis, "a window slides over it")
    step.emit_all([axis if i < lead else None for i, axis in enumerate(label)])


def pad(step: Step) -> None:
    """Padding: over space it passes the channels; over channels the padding is always kept."""
    label = list(step.label(step["self"]))
    amounts = step["pad"] if step["pad"] is not None else step["padding"]
    constant = step.call.name == "aten::constant_pad_nd"
    zero = constant and not step["value"]
    for k in range(len(amounts) // 2):
        before, after = amounts[2 * k], amounts[2 * k + 1]
        axis = label[-1 - k]
        if axis is None or (before == 0 and after == 0):
            continue
        if not constant or min(before, after) < 0:
            step.freeze(axis, "padded by its own values")
            label[-1 - k] = None
            continue
        ends = [np.full(amount, NO_ATOM) for amount in (before, after)]
        label[-1 - k] = Axis(np.concatenate([ends[0], axis.atoms, ends[1]]), axis.zero)
    result: Label = [None if axis is None else Axis(axis.atoms, axis.zero and zero) for axis in label]
    if constant:
        step.emit(result)
    else:
        step.emit([None if axis is None else Axis(axis.atoms, axis.zero) for axis in label])


def vector_norm(step: Step) -> None:
    order = step["ord"] if step["ord"] is not None else step["p"]
    if isinstance(order, Ref) or (order is not None and order <= 0):
        statistic(step)
    else:
        total(step)


def _many(kind: str, rule: object, names: str) -> dict[str, Rule]:
    return {f"aten::{name}": Rule(kind, rule) for name in names.split()}  # type: ignore[arg-type]


RULES: dict[str, Rule] = {
    **_many(
        "max_pool", spatial, "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices "
        "max_pool1d_with_indices fractional_max_pool2d mkldnn_max_pool2d quantized_max_pool2d",
    ),
    **_many("avg_pool", spatial, "avg_pool1d avg_pool2d avg_pool3d"),
    **_many(
        "global_pool", spatial, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d "
        "_adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d",
    ),
    **_many(
        "interpolate", spatial, "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
        "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    ),
    **_many("pad", pad, "constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
            "replication_pad2d replication_pad3d"),
    **_many("reduce", total, "sum nansum"),
    **_many("reduce", vector_norm, "norm linalg_vector_norm"),
    **_many("reduce", statistic, "mean amax amin max min var std var_mean std_mean prod logsumexp argmax argmin "
            "median any all aminmax count_nonzero nanmean"),
    **_many("softmax", along, "_softmax softmax _log_softmax log_softmax _safe_softmax"),
    **_many("along", along, "cumsum cumprod sort argsort topk multinomial cummax cummin logcumsumexp"),
}  # fmt: skip
