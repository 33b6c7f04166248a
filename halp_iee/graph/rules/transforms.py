"""Fourier transforms, complex numbers, triangles and diagonals."""

from __future__ import annotations

import numpy as np

from halp_iee.graph.labels import Axis, Label, Step
from halp_iee.graph.rules.base import Rule, all_zero, broadcast, normal


def fourier(step: Step) -> None:
    """A transform along some axes; the others pass, and zeros stay zeros."""
    label = step.label(step["self"])
    dims = {normal(dim, len(label)) for dim in step["dim"]}
    step.freeze([label[dim] for dim in sorted(dims)], "transformed as a whole")
    step.emit([None if i in dims else axis for i, axis in enumerate(label)])


def to_complex(step: Step) -> None:
    """Pairs of numbers along the last axis become complex numbers."""
    label = step.label(step["self"])
    step.freeze(label[-1], "real and imaginary parts")
    step.emit(label[:-1])


def to_real(step: Step) -> None:
    step.emit([*step.label(step["self"]), None])


def both_parts(step: Step) -> None:
    """complex(real, imag)."""
    step.emit(broadcast(step, step.call.refs, all_zero))


def triangle(step: Step) -> None:
    """Entries above or below the diagonal are dropped: rows and columns stay where they are."""
    label = step.label(step["self"])
    step.freeze(label[-2:], "cut along its diagonal")
    step.emit([*label[:-2], None, None])


def diagonal(step: Step) -> None:
    label = step.label(step["self"])
    dims = {normal(step[name], len(label)) for name in ("dim1", "dim2")}
    step.freeze([label[dim] for dim in sorted(dims)], "cut along its diagonal")
    step.emit([*(axis for i, axis in enumerate(label) if i not in dims), None])


def gated(step: Step) -> None:
    """glu: a sigmoid(b) for the two halves a, b of one axis, whose i-th channels go together."""
    label = step.label(step["self"])
    dim = normal(step["dim"], len(label))
    axis = label[dim]
    if axis is not None:
        first, second = axis.atoms.reshape(2, -1)
        step.tie(first, second)
        step.labels.selected += [first, second]
        label[dim] = Axis(np.ascontiguousarray(first), axis.zero)
    step.emit(label)


def distances(step: Step) -> None:
    """Distances between the rows of two tensors: removed channels add nothing where both hold zeros."""
    one, two = step.label(step["x1"]), step.label(step["x2"])
    step.freeze([one[-2], two[-2]], "compared row by row")
    met = step.meet(one[-1], two[-1]) if one[-1] is not None or two[-1] is not None else None
    if met is not None and not (met.zero and two[-1] is not None and two[-1].zero):
        step.freeze(met, "summed over where removed channels are not zero")
    lead: Label = list(one[:-2]) if len(one) >= len(two) else list(two[:-2])
    step.emit([*lead, None, None])


def trilinear(step: Step) -> None:
    """The sum over some axes of a product of three tensors, each repeated along axes of its own (nn.Bilinear)."""
    aligned: list[Label] = []
    for number in ("1", "2", "3"):
        label = step.label(step[f"i{number}"])
        for dim in sorted(step[f"expand{number}"]):
            label.insert(dim, None)
        aligned.append(label)
    summed, sizes, result = set(step["sumdim"]), [], []
    for number in ("1", "2", "3"):
        shape = list(step.shape(step[f"i{number}"]))
        for dim in sorted(step[f"expand{number}"]):
            shape.insert(dim, 1)
        sizes.append(shape)
    for dim in range(len(aligned[0])):
        wide = [label[dim] for label, shape in zip(aligned, sizes, strict=True) if shape[dim] > 1]
        met = wide[0] if wide else None
        for other in wide[1:]:
            met = step.meet(met, other) if met is not None or other is not None else None
        zero = any(axis is not None and axis.zero for axis in wide)
        if dim in summed:
            if met is not None and not zero:
                step.freeze(met, "summed over where removed channels are not zero")
            continue
        result.append(None if met is None else Axis(met.atoms, zero))
    weight = aligned[1]
    name = step.source(step["i2"])
    for dim, axis in enumerate(weight):
        if axis is not None and name is not None and dim not in summed:
            step.labels.produce(axis.atoms, name)
    step.emit(result)


RULES: dict[str, Rule] = {
    "aten::_fft_r2c": Rule("other", fourier),
    "aten::_fft_c2r": Rule("other", fourier),
    "aten::_fft_c2c": Rule("other", fourier),
    "aten::view_as_complex": Rule("view", to_complex),
    "aten::view_as_real": Rule("view", to_real),
    "aten::complex": Rule("elementwise", both_parts),
    "aten::triu": Rule("elementwise", triangle),
    "aten::tril": Rule("elementwise", triangle),
    "aten::diagonal": Rule("index", diagonal),
    "aten::glu": Rule("activation", gated),
    "aten::_cdist_forward": Rule("reduce", distances),
    "aten::_trilinear": Rule("linear", trilinear),
}
