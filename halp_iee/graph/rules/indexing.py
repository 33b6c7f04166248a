"""Operations that read or write at positions: selecting, advanced indexing, gathering, scattering."""

from __future__ import annotations

from collections.abc import Callable

from halp_iee.graph.calls import Ref
from halp_iee.graph.labels import Axis, Label, Step
from halp_iee.graph.rules.base import Rule, normal


def select(step: Step) -> None:
    """One position of an axis, which then stays where it is."""
    label = step.label(step["self"])
    dim = normal(step["dim"], len(label))
    axis, index = label[dim], step["index"]
    if axis is not None:
        stay = axis.atoms[index:] if index < 0 else axis.atoms[: index + 1]
        step.labels.freeze(stay, f"positions written down in forward ({step.where})", step.call.index)
    step.emit([other for i, other in enumerate(label) if i != dim])


def index(step: Step) -> None:
    """Advanced indexing: indexed axes stay, the others pass."""
    label, indices = step.label(step["self"]), list(step["indices"])
    indices += [None] * (len(label) - len(indices))
    used = [i for i, one in enumerate(indices) if one is not None]
    step.freeze([label[i] for i in used], "indexed by position")
    rest = [axis for i, axis in enumerate(label) if i not in used]
    grown = len(step.out_shape()) - len(rest)
    together = used == list(range(used[0], used[-1] + 1)) if used else True
    at = used[0] if used and together else 0
    for ref in (one for one in indices if isinstance(one, Ref)):
        step.freeze(step.label(ref), "used as an index")
    step.emit([*rest[:at], *([None] * grown), *rest[at:]])


def gather(step: Step) -> None:
    """Picking along one axis: that axis stays; along the others the index is as wide as what it picks from."""
    label = step.label(step["self"])
    dim = normal(step["dim"], len(label)) if label else 0
    if not label:
        return
    step.freeze(label[dim], "indexed by position")
    if step.call.name == "aten::index_select":
        step.freeze(step.label(step["index"]), "used as an index")
        step.emit([None if i == dim else axis for i, axis in enumerate(label)])
        return
    ref = step["index"] if step["index"] is not None else step["indices"]
    step.emit(_beside(step, label, step["self"], ref, dim))


def _beside(step: Step, label: Label, whole: Ref, index: Ref, dim: int) -> Label:
    """Tie what is indexed along one axis to its index along the others, where they are of one size."""
    other = step.label(index)
    result: Label = []
    for i, (axis, size) in enumerate(zip(label, step.shape(whole), strict=True)):
        if i == dim or (axis is None and other[i] is None):
            result.append(None)
        elif step.shape(index)[i] != size:
            step.freeze([axis, other[i]], "indexed by position")
            result.append(None)
        else:
            met = step.meet(axis, other[i])
            result.append(None if met is None else Axis(met.atoms, axis is not None and axis.zero))
    return result


def scatter(step: Step) -> None:
    """Writing along one axis at an index: that axis stays; along the others index and source are as wide."""
    label, index = step.label(step["self"]), step["index"]
    dim = normal(step["dim"], len(label)) if label else 0
    if not label:
        return
    step.freeze([label[dim], step.label(index)[dim]], "indexed by position")
    result = _beside(step, label, step["self"], index, dim)
    source = step["src"]
    if isinstance(source, Ref):
        step.freeze(step.label(source)[dim], "indexed by position")
        written = _beside(step, step.label(source), source, index, dim)
        result = [
            None if one is None or two is None else Axis(one.atoms, one.zero and two.zero)
            for one, two in zip(result, written, strict=True)
        ]
    else:
        result = [None if one is None else Axis(one.atoms, one.zero and not step["value"]) for one in result]
    step.emit(result)


def index_put(step: Step) -> None:
    """Writing at positions of the leading axes: those stay, the others are tied to what is written."""
    label, values = step.label(step["self"]), step.label(step["values"])
    indices = list(step["indices"])
    written = step.shape(step["values"])
    leading = all(one is not None for one in indices)
    result: Label = []
    for axis, one in enumerate(label):
        position = axis - len(label)
        if axis < len(indices) or not leading:
            step.freeze(one, "indexed by position")
            result.append(None)
        elif len(written) < -position or written[position] == 1:
            result.append(None if one is None else Axis(one.atoms, False))
        else:
            other = values[position]
            met = step.meet(one, other) if one is not None or other is not None else None
            result.append(None if met is None else Axis(met.atoms, met.zero and other is not None and other.zero))
    beyond = values if not leading else values[: max(0, len(values) - (len(label) - len(indices)))]
    step.freeze(beyond, "written at positions")
    for ref in (one for one in indices if isinstance(one, Ref)):
        step.freeze(step.label(ref), "used as an index")
    step.emit(result)


def index_add(step: Step) -> None:
    """Adding rows at positions of one axis: that axis stays, the others are tied to what is added."""
    label, source = step.label(step["self"]), step.label(step["source"])
    dim = normal(step["dim"], len(label))
    step.freeze([label[dim], source[dim], *step.label(step["index"])], "indexed by position")
    result: Label = []
    for axis, (one, other) in enumerate(zip(label, source, strict=True)):
        met = None if axis == dim or (one is None and other is None) else step.meet(one, other)
        result.append(None if met is None else Axis(met.atoms, met.zero and other is not None and other.zero))
    step.emit(result)


def _rules(rule: Callable[[Step], None], names: str, kind: str = "index") -> dict[str, Rule]:
    return {f"aten::{name}": Rule(kind, rule) for name in names.split()}


RULES: dict[str, Rule] = {
    **_rules(select, "select select_copy", "slice"),
    **_rules(index, "index _unsafe_index"),
    **_rules(index_put, "index_put _unsafe_index_put _index_put_impl"),
    **_rules(index_add, "index_add index_copy"),
    **_rules(gather, "gather index_select take_along_dim"),
    **_rules(scatter, "scatter scatter_add scatter_reduce"),
}
