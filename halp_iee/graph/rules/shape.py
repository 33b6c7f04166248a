"""Operations that move, join, split or regroup axes."""

from __future__ import annotations

import math

import numpy as np

from halp_iee.graph.labels import NO_ATOM, Axis, Label, Step
from halp_iee.graph.rules.base import Rule, normal

MOST_PARTS = 8
"""A split into more parts than this is not taken for one whose parts shrink together."""


def segments(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[range, range]]:
    """Match the axes of two shapes of one size: the finest cut into runs of equal product."""
    runs, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right and i < len(before):
                left *= before[i]
                i += 1
            elif j < len(after):
                right *= after[j]
                j += 1
            else:
                left *= before[i]
                i += 1
        runs.append((range(i0, i), range(j0, j)))
    return runs


def view(step: Step) -> None:
    """Regroup axes without moving elements.

    A merge repeats or carries the atoms. A split leaves open which of its parts
    shrinks (a view into groups: the channels of each; into heads: the heads), so it
    is a choice, tried in order from the last part to the first; the other parts are
    then tied together.
    """
    label, before, after = step.label(step["self"]), step.shape(step["self"]), step.out_shape()
    result: Label = [None] * len(after)
    if 0 in before:
        return
    for part, (old, new) in enumerate(segments(before, after)):
        carried = [i for i in old if label[i] is not None]
        if len(carried) > 1:  # what only repeats gives way to what carries channels
            own = [i for i in carried if label[i].atoms[0] not in step.labels.repeated]  # type: ignore[union-attr]
            for i in set(carried) - set(own or carried[-1:]):
                step.freeze(label[i], "a number of repetitions")
            carried = own or carried[-1:]
        if not carried:
            continue
        step.freeze([label[i] for i in carried[:-1]], "merged with another axis that carries channels")
        axis = label[carried[-1]]
        assert axis is not None
        if len(old) == len(new) == 1:
            result[new[0]] = axis
            continue
        spread = axis.atoms.reshape([-1 if i == carried[-1] else 1 for i in old])
        spread = np.broadcast_to(spread, [before[i] for i in old]).reshape([after[j] for j in new])
        varying = [k for k, size in enumerate(spread.shape) if size > 1 and (spread != spread.take([0], axis=k)).any()]
        if not varying:
            varying = [int(np.argmax(spread.shape))]
        if len(varying) > 1:
            sizes = tuple(spread.shape[k] for k in varying[-2:])
            taken = step.labels.choose((step.call.index, part), axis.atoms, len(varying), sizes)
            if taken >= len(varying):
                step.freeze(axis, "a size hard-coded in forward")
                continue
            live = varying[-1 - taken]
        else:
            live = varying[0]
        flat = np.moveaxis(spread, live, -1).reshape(-1, spread.shape[live])
        if len(varying) > 1:
            for row in flat[1:]:
                step.tie(flat[0], row)
        result[new[live]] = Axis(np.ascontiguousarray(flat[0]), axis.zero)
    step.emit(result)


def permute(step: Step) -> None:
    label = step.label(step["self"])
    step.emit([label[normal(axis, len(label))] for axis in step["dims"]])


def transpose(step: Step) -> None:
    label = step.label(step["self"])
    names = ("dim0", "dim1") if step["dim0"] is not None else ("axis0", "axis1")
    if step.call.name in ("aten::t", "aten::numpy_T", "aten::mT"):
        step.emit(label[::-1])
        return
    one, two = (normal(step[name], len(label)) for name in names)
    label[one], label[two] = label[two], label[one]
    step.emit(label)


def unsqueeze(step: Step) -> None:
    label = step.label(step["self"])
    label.insert(normal(step["dim"], len(label) + 1), None)
    step.emit(label)


def squeeze(step: Step) -> None:
    shape, label = step.shape(step["self"]), step.label(step["self"])
    dim = step["dim"]
    dims = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {normal(axis, len(shape)) for axis in dims if shape and shape[axis] == 1}
    step.emit([axis for i, axis in enumerate(label) if i not in gone])


def _grown(step: Step, label: Label, before: tuple[int, ...]) -> Label:
    """Axes of size one that were repeated adopt what they meet."""
    # The first axis of an activation is its batch, that of a weight the channels it makes.
    weight = not step.labels.capture.active[step["self"].id]
    grown = [
        Axis(step.labels.fresh(new), False) if old == 1 and new > 1 and (i > 0 or weight) else axis
        for i, (axis, old, new) in enumerate(zip(label, before, step.out_shape(), strict=True))
    ]
    step.labels.repeated |= {int(new.atoms[0]) for new, old in zip(grown, label, strict=True) if new and new is not old}
    return grown


def expand(step: Step) -> None:
    """Repetition of axes of size one."""
    label, shape = step.label(step["self"]), step.shape(step["self"])
    more = len(step.out_shape()) - len(shape)
    step.emit(_grown(step, [*([None] * more), *label], (1,) * more + shape))


def repeat(step: Step) -> None:
    """Tiling: the atoms of an axis are repeated with it."""
    label, shape = step.label(step["self"]), step.shape(step["self"])
    more = len(step.out_shape()) - len(shape)
    tiled = [
        None if axis is None else Axis(np.tile(axis.atoms, times), axis.zero)
        for axis, times in zip([*([None] * more), *label], step["repeats"], strict=True)
    ]
    step.emit(_grown(step, tiled, (1,) * more + shape))


def join(step: Step) -> None:
    """Concatenation: labels are joined along the axis and tied along the others."""
    refs = [ref for ref in step["tensors"] if step.shape(ref) != (0,)]
    if not refs:
        return
    labels = [step.label(ref) for ref in refs]
    ndim = len(labels[0])
    along = normal(step["dim"], ndim)
    result: Label = []
    for i in range(ndim):
        axes = [label[i] for label in labels]
        if all(axis is None for axis in axes):
            result.append(None)
        elif i == along:
            atoms = [
                axis.atoms if axis is not None else np.full(step.shape(ref)[i], NO_ATOM)
                for axis, ref in zip(axes, refs, strict=True)
            ]
            result.append(Axis(np.concatenate(atoms), all(axis is None or axis.zero for axis in axes)))
        else:
            met = axes[0]
            for other in axes[1:]:
                met = step.meet(met, other)
            result.append(None if met is None else Axis(met.atoms, all(a is not None and a.zero for a in axes)))
    step.emit(result)


def stack(step: Step) -> None:
    labels = [step.label(ref) for ref in step["tensors"]]
    result: Label = []
    for axes in zip(*labels, strict=True):
        met = axes[0]
        for other in axes[1:]:
            met = step.meet(met, other) if met is not None or other is not None else None
        result.append(None if met is None else Axis(met.atoms, all(a is not None and a.zero for a in axes)))
    result.insert(normal(step["dim"], len(result) + 1), None)
    step.emit(result)


def _parts(step: Step, axis: Axis, sizes: list[int]) -> list[Axis | None]:
    """Cut an axis: equal parts shrink together, the i-th channel of each tied; else each as it likes; else none.

    The second needs sizes that follow: from the tensors' shapes, or numbers that a module keeps.
    """
    equal = len(set(sizes)) == 1 and 1 < len(sizes) <= MOST_PARTS and sizes[0] > 1
    if len(sizes) == 1:
        return [axis]
    ways = [*(["tied"] if equal else []), *(["free"] if len(sizes) <= MOST_PARTS else [])]
    taken = step.labels.choose((step.call.index, 0), axis.atoms, len(ways))
    if taken >= len(ways):
        step.freeze(axis, "split at sizes hard-coded in forward")
    cuts = np.split(axis.atoms, np.cumsum(sizes)[:-1])
    if taken < len(ways) and ways[taken] == "tied":
        for cut in cuts[1:]:
            step.tie(cuts[0], cut)
    return [Axis(cut, axis.zero) for cut in cuts]


def split(step: Step) -> None:
    label = step.label(step["self"])
    dim = normal(step["dim"], len(label))
    axis = label[dim]
    sizes = [step.out_shape(i)[dim] for i in range(len(step.call.outputs))]
    parts = [None] * len(sizes) if axis is None else _parts(step, axis, sizes)
    for index, part in enumerate(parts):
        if part is not None:
            step.labels.selected.append(part.atoms)
        step.emit([part if i == dim else other for i, other in enumerate(label)], index)


def unbind(step: Step) -> None:
    label = step.label(step["self"])
    dim = normal(step["dim"], len(label))
    step.freeze(label[dim], "taken apart one by one")
    step.emit_all([axis for i, axis in enumerate(label) if i != dim])


def take_slice(step: Step) -> None:
    """A range of an axis: an equal part (all parts then shrink together) or a head or tail of fixed length."""
    label = step.label(step["self"])
    dim = normal(step["dim"], len(label))
    axis, size = label[dim], step.shape(step["self"])[dim]
    length, stride = step.out_shape()[dim], step["step"] or 1
    if axis is None or length == size:
        step.emit(label)
        return
    given = step["start"] or 0
    begin = min(max(given + size if given < 0 else given, 0), size)
    chosen = axis.atoms[begin : begin + length * stride : stride]
    even = stride == 1 and length > 1 and size % length == 0 and begin % length == 0 and size // length <= 4
    # Every second channel, say: neighbours then stay or go together, so that the others keep their turn.
    strided = stride > 1 and length > 1 and length * stride == size and begin < stride
    ways = [*(["tied"] if even or strided else []), *(["free"] if stride == 1 else []), "fixed"]
    taken = step.labels.choose((step.call.index, 0), axis.atoms, len(ways))
    way = ways[taken] if taken < len(ways) else None
    if way == "tied":
        parts = axis.atoms.reshape(-1, length) if even else axis.atoms.reshape(-1, stride).T
        for part in parts[1:]:
            step.tie(parts[0], part)
    elif way == "free":
        # The bounds follow what is left: they come from shapes, or from numbers that a module keeps.
        step.labels.selected.append(axis.atoms[:begin])
    elif way == "fixed" and stride == 1:
        # Whatever lies before the end that was written down must stay, so that the
        # same positions are taken; what lies on the open side is free.
        to_end, from_end = begin + length == size, given < 0
        fixed = axis.atoms[begin:] if from_end else axis.atoms[: begin if to_end else begin + length]
        step.labels.freeze(fixed, f"positions written down in forward ({step.where})", step.call.index)
    else:
        step.freeze(axis, "positions written down in forward")
    step.labels.selected.append(chosen)
    label[dim] = Axis(chosen, axis.zero)
    step.emit(label)


def pixel_shuffle(step: Step) -> None:
    """(C r r, H, W) to (C, H r, W r): the r r channels of one output channel are one unit."""
    label = step.label(step["self"])
    axis, factor = label[-3], step["upscale_factor"]
    if axis is not None:
        rows = axis.atoms.reshape(-1, factor * factor)
        for column in range(1, rows.shape[1]):
            step.tie(np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, column]))
        axis = Axis(np.ascontiguousarray(rows[:, 0]), axis.zero)
    step.emit([*label[:-3], axis, None, None])


def pixel_unshuffle(step: Step) -> None:
    """(C, H r, W r) to (C r r, H, W): a channel becomes r r."""
    label = step.label(step["self"])
    axis, factor = label[-3], step["downscale_factor"]
    if axis is not None:
        axis = Axis(np.repeat(axis.atoms, factor * factor), axis.zero)
    step.emit([*label[:-3], axis, None, None])


def channel_shuffle(step: Step) -> None:
    """(g, c) to (c, g): each of the g groups keeps the same of its c channels."""
    label = step.label(step["self"])
    axis = label[1]
    if axis is not None:
        rows = axis.atoms.reshape(step["groups"], -1)
        for row in rows[1:]:
            step.tie(rows[0], row)
        label[1] = Axis(np.ascontiguousarray(rows.T.reshape(-1)), axis.zero)
    step.emit(label)


def flip(step: Step) -> None:
    """The order of an axis turned round: what stays stays in order."""
    label = step.label(step["self"])
    for dim in step["dims"]:
        axis = label[normal(dim, len(label))]
        if axis is not None:
            label[normal(dim, len(label))] = Axis(np.ascontiguousarray(axis.atoms[::-1]), axis.zero)
    step.emit(label)


def roll(step: Step) -> None:
    """Rolling along other axes passes; a number of channels would lead somewhere else among fewer."""
    label, dims = step.label(step["self"]), step["dims"] or range(len(step.shape(step["self"])))
    for dim in dims:
        step.freeze(label[normal(dim, len(label))], "rolled by a number of channels")
        label[normal(dim, len(label))] = None
    step.emit(label)


def as_strided(step: Step) -> None:
    """Restriding without change of shape passes; anything else is opaque."""
    label = step.label(step["self"])
    if step.out_shape() == step.shape(step["self"]) and math.prod(step.out_shape()[2:]) == 1:
        step.emit(label)
    else:
        step.freeze(label, "its memory is restrided")


def _rules(kind: str, rule: object, names: str) -> dict[str, Rule]:
    return {f"aten::{name}": Rule(kind, rule) for name in names.split()}  # type: ignore[arg-type]


RULES: dict[str, Rule] = {
    **_rules("view", view, "view _unsafe_view reshape flatten unflatten _reshape_alias view_copy _reshape_copy"),
    **_rules("permute", permute, "permute permute_copy"),
    **_rules("permute", transpose, "transpose t swapaxes numpy_T mT transpose_copy t_copy"),
    **_rules("view", unsqueeze, "unsqueeze unsqueeze_copy"),
    **_rules("view", squeeze, "squeeze squeeze_copy"),
    **_rules("expand", expand, "expand expand_copy"),
    **_rules("expand", repeat, "repeat"),
    **_rules("cat", join, "cat concat"),
    **_rules("stack", stack, "stack"),
    **_rules("split", split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk "
             "split_copy split_with_sizes_copy"),
    **_rules("split", unbind, "unbind unbind_copy"),
    **_rules("slice", take_slice, "slice slice_copy"),
    **_rules("pixel_shuffle", pixel_shuffle, "pixel_shuffle"),
    **_rules("pixel_shuffle", pixel_unshuffle, "pixel_unshuffle"),
    **_rules("pixel_shuffle", channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **_rules("along", flip, "flip"),
    **_rules("along", roll, "roll"),
    **_rules("view", as_strided, "as_strided"),
}  # fmt: skip
