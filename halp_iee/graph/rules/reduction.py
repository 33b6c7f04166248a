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
    """Means, extremes, variances, products: removed channels would count."""
    label = step.label(step["self"])
    dims = _dims(step, len(label))
    step.freeze([label[i] for i in dims], "reduced over all its channels together")
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


def regions(step: Step) -> None:
    """Pooling of boxes (K, 5) from a feature map (N, C, H, W) to (K, C, h, w): channels pass."""
    label = step.label(step["input"])
    step.freeze([label[0], *label[2:], *step.label(step["rois"])], "regions are cut from it")
    step.emit([None, label[1], None, None])


def recurrent(step: Step) -> None:
    """A recurrent layer in one operation: the features it reads can go, all else keeps its size."""
    label = step.label(step["input"])
    reads = [ref for ref in step.call.refs if ref.id in _input_weights(step)]
    for ref in step.call.refs:
        if ref.id != step["input"].id:
            axes, name = step.label(ref), step.source(ref)
            step.freeze(axes[:-1] if ref in reads else axes, "belongs to a recurrent layer")
            if name is not None and axes and axes[0] is not None and len(axes) > 1:
                step.labels.produce(axes[0].atoms, name)
    features = label[-1]
    for ref in reads:
        weight = step.label(ref)[-1]
        met = step.meet(features, weight) if features is not None or weight is not None else None
        if met is not None and weight is not None and not (met.zero or weight.zero):
            step.freeze(met, "summed over where removed channels are not zero")
    if not reads:
        step.freeze(features, "belongs to a recurrent layer")
    step.freeze(label[:-1], "a recurrent layer runs over it")


def _input_weights(step: Step) -> set[int]:
    """The weights of the first layer, by value id, that multiply the input: those named weight_ih_l0."""
    found = set()
    for ref in step.call.refs:
        names = step.labels.capture.tensors.get(ref.id, ())
        if any(name.rpartition(".")[2] in ("weight_ih_l0", "weight_ih_l0_reverse", "weight_ih") for name in names):
            found.add(ref.id)
    return found


def vector_norm(step: Step) -> None:
    order = step["ord"] if step["ord"] is not None else step["p"]
    if isinstance(order, Ref) or (order is not None and order <= 0):
        statistic(step)
    else:
        total(step)


def _many(kind: str, rule: object, names: str) -> dict[str, Rule]:
    return {f"aten::{name}": Rule(kind, rule) for name in names.split()}  # type: ignore[arg-type]


RULES: dict[str, Rule] = {
    "torchvision::roi_align": Rule("avg_pool", regions),
    "torchvision::roi_pool": Rule("max_pool", regions),
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
    **_many("along", along, "cumsum cumprod sort flip roll topk cummax cummin logcumsumexp"),
    **_many("recurrent", recurrent, "lstm gru rnn_tanh rnn_relu mkldnn_rnn_layer _cudnn_rnn lstm_cell gru_cell"),
}  # fmt: skip
