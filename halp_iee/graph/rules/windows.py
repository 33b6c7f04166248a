"""Operations on windows and regions of space: unfold, fold, sampling at places, deformable convolution."""

from __future__ import annotations

import numpy as np

from halp_iee.graph.calls import Ref
from halp_iee.graph.labels import Axis, Step
from halp_iee.graph.rules.base import Rule, normal
from halp_iee.graph.rules.contraction import contract


def im2col(step: Step) -> None:
    """unfold: (N, C, H, W) to (N, C k, L); a channel becomes its k taps."""
    label = step.label(step["self"])
    lead = len(label) - 3
    step.freeze(label[-2:], "a window slides over it")
    axis = label[lead]
    if axis is not None:
        taps = step.out_shape()[-2] // len(axis.atoms)
        axis = Axis(np.repeat(axis.atoms, taps), axis.zero)
    step.emit([*label[:lead], axis, None])


def col2im(step: Step) -> None:
    """fold: (N, C k, L) to (N, C, H, W); the k taps of a channel are one unit."""
    label = step.label(step["self"])
    step.freeze(label[-1], "a window slides over it")
    axis = label[-2]
    if axis is not None:
        rows = axis.atoms.reshape(step.out_shape()[-3], -1)
        for column in range(1, rows.shape[1]):
            step.tie(np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, column]))
        axis = Axis(np.ascontiguousarray(rows[:, 0]), axis.zero)
    step.emit([*label[:-2], axis, None, None])


def grid_sample(step: Step) -> None:
    """(N, C, ...) read at the places of a grid (N, ..., d): channels pass."""
    label, grid = step.label(step["input"]), step.label(step["grid"])
    step.freeze([*label[2:], *grid[1:]], "sampled by position")
    batch = step.meet(label[0], grid[0]) if label[0] is not None or grid[0] is not None else None
    step.emit([batch, label[1], *([None] * (len(label) - 2))])


def positions(step: Step) -> None:
    """What is read is used as positions or counts: it stays as it is."""
    for ref in step.call.refs:
        step.freeze(step.label(ref), "used as positions")


def deformed(step: Step) -> None:
    """A convolution whose taps are displaced: the offsets stay, channels behave as in any convolution."""
    x, weight = step.label(step["input"]), step.label(step["weight"])
    for name in ("offset", *(["mask"] if step["use_mask"] else [])):
        step.freeze(step.label(step[name]), "the taps of a deformable convolution")
    step.freeze([*x[2:], *weight[2:]], "a convolution slides over it")
    if step["groups"] == 1 and step["offset_groups"] == 1:
        contract(step, x[1], weight[1])
    else:
        step.freeze([x[1], weight[0], weight[1]], "the groups of a deformable convolution")
    out = weight[0]
    bias = step.label(step["bias"])[0] if isinstance(step["bias"], Ref) else None
    if bias is not None and out is not None:
        met = step.meet(out, bias)
        out = None if met is None else Axis(met.atoms, out.zero and bias.zero)
    maker = step.source(step["weight"])
    if out is not None and maker is not None:
        step.labels.produce(out.atoms, maker)
    step.emit([x[0], out, None, None])


def regions(step: Step) -> None:
    """Pooling of boxes (K, 5) from a feature map (N, C, H, W) to (K, C, h, w): channels pass."""
    label = step.label(step["input"])
    step.freeze([label[0], *label[2:], *step.label(step["rois"])], "regions are cut from it")
    step.emit([None, label[1], None, None])


def sliding(step: Step) -> None:
    """Tensor.unfold: overlapping pieces of one axis, which become an axis at the end."""
    label = step.label(step["self"])
    dim = normal(step["dimension"], len(label))
    step.freeze(label[dim], "a window slides over it")
    step.emit([*(None if i == dim else axis for i, axis in enumerate(label)), None])


RULES: dict[str, Rule] = {
    "aten::im2col": Rule("other", im2col),
    "aten::col2im": Rule("other", col2im),
    "aten::grid_sampler_2d": Rule("interpolate", grid_sample),
    "aten::grid_sampler_3d": Rule("interpolate", grid_sample),
    "aten::affine_grid_generator": Rule("other", positions),
    "aten::nonzero": Rule("index", positions),
    "aten::bincount": Rule("index", positions),
    "torchvision::deform_conv2d": Rule("conv_deformed", deformed),
    "torchvision::nms": Rule("index", positions),
    "torchvision::roi_align": Rule("avg_pool", regions),
    "torchvision::roi_pool": Rule("max_pool", regions),
    "aten::unfold": Rule("view", sliding),
}
