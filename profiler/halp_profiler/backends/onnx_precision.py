"""Turns an ONNX network of fp32 into one of fp16 or bf16, for runtimes that take the precision from the network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_STAY_FP32 = {"Resize": (1, 2)}  # operator -> inputs whose type the operator fixes: scales


def converted(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """``model`` with its inputs, weights and results in ``precision``; itself for ``fp32`` and ``tf32``.

    Raises:
        KeyError: an unknown precision.
    """
    if precision in ("fp32", "tf32"):
        return model
    wanted = _TYPES[precision]
    out = onnx.ModelProto()
    out.CopyFrom(model)
    fixed = set(_fixed(out.graph))
    for weight in out.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and weight.name not in fixed:
            weight.CopyFrom(_narrow(weight, wanted))
    for value in (*out.graph.input, *out.graph.output, *out.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = wanted
    for node in out.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_narrow(attribute.t, wanted))
    return out


def _fixed(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        for position in _STAY_FP32.get(node.op_type, ()):
            if position < len(node.input) and node.input[position]:
                yield node.input[position]


def _narrow(weight: onnx.TensorProto, wanted: int) -> onnx.TensorProto:
    values = numpy_helper.to_array(weight)
    if wanted == TensorProto.FLOAT16:
        return numpy_helper.from_array(values.astype(np.float16), weight.name)
    # bfloat16 is the upper half of fp32; half of what is cut off is added first, to round to the nearest.
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    upper = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return onnx.TensorProto(name=weight.name, data_type=wanted, dims=values.shape, raw_data=upper.tobytes())
