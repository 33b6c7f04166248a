"""Cuts a kernel out of the network that a runtime has optimised, and repeats it.

What remains is exactly what the runtime would execute for this layer inside a
network: its fused kernel in its blocked layout, plus the reorderings that this
layer's widths force on the runtime, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from halp_profiler.backends.onnx_kernels import OPSET


@dataclass(frozen=True)
class Cut:
    """The nodes of one kernel between its inputs and its output.

    Attributes:
        model: the optimised network that it was cut from.
        nodes: in execution order.
        entries: input tensor -> its channels as stored (padded to whole blocks); None when not an image.
        result: the tensor that the next layer reads.
        carried: (the tensor that a fused or plain addition reads, the tensor it makes); None without addition.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    entries: dict[str, int | None]
    result: str
    carried: tuple[str, str] | None


def cut(model: onnx.ModelProto, has_next: bool) -> Cut:
    """The kernel of ``onnx_kernels.build`` after a runtime has optimised it."""
    graph = model.graph
    producer = {out: node for node in graph.node for out in node.output}
    weights = {w.name: w for w in graph.initializer}
    entries: dict[str, int | None] = {}
    z_tensor: str | None = None
    for value in graph.input:
        if not value.name.startswith("probe_"):
            entries[value.name] = None
            z_tensor = value.name if value.name == "z" else z_tensor
            continue
        tensor = value.name
        while True:  # the probe's own reordering, if any, then its convolution
            node = next(n for n in graph.node if tensor in n.input)
            tensor = node.output[0]
            if "Conv" in node.op_type:
                break
        entries[tensor] = weights[node.input[1]].dims[0]
        if value.name == "probe_z":
            z_tensor = tensor
    result = _step_back(graph.output[-1].name, producer, "ReorderOutput")
    if has_next:
        result = _step_back(producer[result].input[0], producer, "ReorderOutput")
    needed: set[int] = set()
    stack = [result]
    while stack:
        tensor = stack.pop()
        if tensor in entries or tensor not in producer or id(producer[tensor]) in needed:
            continue
        needed.add(id(producer[tensor]))
        stack += [i for i in producer[tensor].input if i]
    nodes = tuple(n for n in graph.node if id(n) in needed)
    return Cut(model, nodes, entries, result, _carried(nodes, z_tensor, set(entries)))


def _step_back(tensor: str, producer: dict[str, onnx.NodeProto], op: str) -> str:
    node = producer.get(tensor)
    return node.input[0] if node is not None and node.op_type == op else tensor


def _carried(nodes: tuple[onnx.NodeProto, ...], z: str | None, entries: set[str]) -> tuple[str, str] | None:
    """Where the residual enters the addition: in a network its buffer is written in place, not copied."""
    if z is None:
        return None
    from_z, from_x = {z}, entries - {z}
    for node in nodes:
        z_in = [i for i in node.input if i in from_z]
        if z_in and any(i in from_x for i in node.input):
            return (z_in[0], node.output[0]) if "Add" in node.op_type or "Conv" in node.op_type else None
        (from_z if z_in else from_x).update(node.output)
    return None


def repeated(piece: Cut, times: int, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A network that runs the kernel ``times`` times.

    Every repetition reads the same inputs; a residual addition reads what the repetition before it made,
    so that its buffer is reused as inside a network.

    Args:
        piece: the kernel.
        times: how often.
        shapes: entry tensor -> its shape.
    """
    graph = onnx.GraphProto(name="repeated")
    for i in range(times):
        renamed = {out: f"{out}_{i}" for node in piece.nodes for out in node.output}
        reads = dict(renamed)
        if i and piece.carried:
            reads[piece.carried[0]] = f"{piece.carried[1]}_{i - 1}"
        for position, node in enumerate(piece.nodes):
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = f"{node.op_type}_{position}_{i}"
            # The name that the runtime gave may be the residual's own producer: only readers see the carried one.
            copy.input[:] = [reads.get(name, name) for name in node.input]
            copy.output[:] = [renamed[name] for name in node.output]
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(w for w in piece.model.graph.initializer if w.name in used)
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name])
        for name in piece.entries
        if name in used
    )
    last = f"{piece.result}_{times - 1}" if piece.nodes else piece.result
    graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    model = onnx.helper.make_model(graph, ir_version=9)
    del model.opset_import[:]
    model.opset_import.extend(piece.model.opset_import)
    if not any(o.domain == "" for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return model
