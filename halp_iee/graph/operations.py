"""The public record of what ran, with every width as a function of the groups' widths."""

from __future__ import annotations

from typing import Any

from halp_iee.graph.calls import Call, Ref, refs_in
from halp_iee.graph.groups import Structure
from halp_iee.graph.labels import Axis, Labels
from halp_iee.graph.records import Op, Width
from halp_iee.graph.rules import RULES
from halp_iee.graph.rules.base import normal
from halp_iee.graph.rules.elementwise import activation_attrs

LAST_AXIS = frozenset({"linear", "matmul", "layer_norm", "embedding", "attention"})
FIRST_AXIS = frozenset({"conv", "batch_norm", "group_norm", "max_pool", "avg_pool", "global_pool", "interpolate"})


def channel_axis(kind: str, shape: tuple[int, ...], label: list[Axis | None]) -> int | None:
    """Where a tensor's channels are: axis 1, or the last, by the operation and by what is labelled."""
    if not shape:
        return None
    if kind in LAST_AXIS or len(shape) == 1:
        return len(shape) - 1
    if kind in FIRST_AXIS or len(shape) == 2:
        return 1
    if label[1] is None and label[-1] is not None:
        return len(shape) - 1
    return 1 if len(shape) > 3 or label[1] is not None else len(shape) - 1


def kind_of(call: Call, labels: Labels) -> str:
    """The operation's family; a product with something made of parameters is a linear layer."""
    rule = RULES.get(call.name)
    kind = rule.kind if rule is not None else "other"
    capture = labels.capture
    if kind == "matmul":
        operands = [v for v in call.args.values() if isinstance(v, Ref) and len(capture.shapes[v.id]) > 1]
        if any(capture.sources[ref.id] and not capture.active[ref.id] for ref in operands):
            return "linear"
    if call.name == "aten::mean":
        ndim = len(capture.shapes[call.args["self"].id])
        dims = call.args.get("dim") or []
        if ndim == 4 and sorted(normal(axis, ndim) for axis in dims) == [2, 3]:
            return "global_pool"
    return kind


def attributes(kind: str, call: Call, labels: Labels) -> dict[str, Any]:
    """The numbers that a cost model or a report needs, by the names of `Op.attrs`."""
    args, shapes = call.args, labels.capture.shapes
    if kind == "conv":
        return {
            **({"keeps_groups": True} if call.index in labels.within else {}),
            "kernel_size": tuple(shapes[args["weight"].id][2:]),
            "stride": tuple(args["stride"]),
            "padding": tuple(args["padding"]),
            "dilation": tuple(args["dilation"]),
            "output_padding": tuple(args["output_padding"]),
            "groups": args["groups"],
            "transposed": bool(args["transposed"]),
            "bias": args["bias"] is not None,
        }
    if kind == "linear":
        return {"bias": call.name in ("aten::addmm", "aten::baddbmm") or args.get("bias") is not None}
    if kind == "activation":
        return activation_attrs(dict(args), call.name)
    plain: dict[str, Any] = {}
    for name, value in args.items():
        if value is None or refs_in(value):
            continue
        if isinstance(value, (int, float, bool, str)):
            plain[name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(one, (int, float)) for one in value):
            plain[name] = tuple(value)
    if kind in ("max_pool", "avg_pool"):
        plain["stride"] = plain.get("stride") or plain.get("kernel_size")
    return plain


class Operations:
    """Builds the records of one capture, in two steps: the axes first, then the widths."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.rows: list[tuple[Call, str, int, int, Axis | None, Axis | None, int, int]] = []
        capture = labels.capture
        for call in capture.calls:
            outputs = [value for value in call.outputs if value is not None]
            inputs = [ref.id for ref in call.refs if capture.active[ref.id]]
            if not inputs or not outputs:
                continue
            kind = kind_of(call, labels)
            source, target = inputs[0], outputs[0]
            into, size_in = self._axis(kind, source)
            out, size_out = self._axis(kind, target)
            self.rows.append((call, kind, source, target, into, out, size_in, size_out))

    def _axis(self, kind: str, value: int) -> tuple[Axis | None, int]:
        shape = self.labels.capture.shapes[value]
        label = self.labels.of[value] or [None] * len(shape)
        axis = channel_axis(kind, shape, label)
        return (None, 1) if axis is None else (label[axis], shape[axis])

    @property
    def channel_axes(self) -> list[Any]:
        return [axis.atoms for row in self.rows for axis in row[4:6] if axis is not None]

    def records(self, structure: Structure) -> tuple[Op, ...]:
        capture = self.labels.capture
        widths: dict[tuple[int, int], Width] = {}

        def width(axis: Axis | None, size: int) -> Width:
            key = (id(axis.atoms) if axis is not None else 0, size)
            if key not in widths:
                units = structure.units(axis.atoms) if axis is not None else None
                widths[key] = structure.width(units, size)
            return widths[key]

        ops = []
        for index, (call, kind, source, target, into, out, size_in, size_out) in enumerate(self.rows):
            refs = [ref.id for ref in call.refs]
            params = (name for value in refs if not capture.active[value] for name in capture.sources[value])
            ops.append(
                Op(
                    index=index,
                    kind=kind,
                    name=call.overload,
                    module=call.module,
                    inputs=tuple(value for value in refs if capture.active[value]),
                    outputs=tuple(value for value in call.outputs if value is not None),
                    in_shape=capture.shapes[source],
                    out_shape=capture.shapes[target],
                    c_in=width(into, size_in),
                    c_out=width(out, size_out),
                    params=tuple(dict.fromkeys(params)),
                    attrs=attributes(kind, call, self.labels),
                )
            )
        return tuple(ops)
